"""Running text as a suite: what a model's perplexity is measured on.

A text file is one document, or several divided by form feeds; a file of JSON lines has one a line. The suite ``text``
comes with the workbench, ``text:FILE`` is that of a user's file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.evaluation.samples import PERPLEXITY, Sample, Suite
from core.store.columns import Column

SHIPPED = Path(__file__).parent / "texts" / "alice.txt"
"""What the suite ``text`` reads; ``texts/README.md`` says where it comes from."""

_DIVIDER = "\f"


COLUMN = Column(
    "perplexity", "perplexity", 15, "right", "number", "exp of the NLL", 2, "lower", error="perplexity_se"
)
"""How a perplexity is written; it is worked out from a run's NLL and not stored."""


def perplexity(row: Mapping[str, Any]) -> dict[str, float | None]:
    """``perplexity`` and ``perplexity_se`` of a run over running text; nothing of another run, or without an NLL.

    The error is that of the NLL carried through the exponential to first order.
    """
    if row.get("task") != PERPLEXITY or row.get("nll") is None:
        return {}
    value = math.exp(min(row["nll"], 700.0))
    error = row.get("nll_se")
    return {"perplexity": value, "perplexity_se": None if error is None else value * error}


def read(path: Path, name: str | None = None) -> Suite:
    """The suite in a file of texts, a sample for each document.

    Raises:
        DataError: as ``documents_of``.
    """
    samples = tuple(
        Sample(key=f"{number:03d}", task=PERPLEXITY, prompt=document)
        for number, document in enumerate(documents_of(path), 1)
    )
    return Suite(name or path.stem, PERPLEXITY, samples, {}, path)


def documents_of(path: Path) -> list[str]:
    """The documents of a file of texts, in order: divided by form feeds, or one a line of JSON lines (``.jsonl``), a
    string or an object with ``text``.

    Raises:
        DataError: it cannot be read, is no UTF-8, or holds no words; a line of JSON that is no text is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start}); convert it") from error
    if path.suffix == ".jsonl":
        parts = [_line(path, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        parts = text.split(_DIVIDER)
    documents = [part.strip() for part in parts if part.strip()]
    if not documents:
        raise DataError(f"{path}: holds no words, wanted running text")
    return documents


def _line(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {number} is no JSON ({error})") from error
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise DataError(f'{path}: line {number} is no text, wanted a string or {{"text": ...}}')
    return text
