"""Calibrating a causal LM on running text: documents cut into sequences, run through the model under observation.

A file of texts is ``.jsonl`` (a string, or an object with ``text``, on every line) or plain text, whose documents are
divided by form feeds. Without one, the text that comes with the workbench is read (``texts/README.md``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.calibration.observers import LinearHooks
from core.calibration.statistics import Statistics
from core.errors import DataError
from core.files import sha256_text
from core.huggingface.loading import CausalLM
from core.lance.roles import Role
from core.quantization.groups import LinearGroup

TASK = "text"
SHIPPED = Path(__file__).parent / "texts" / "holmes.txt"

SEQUENCE = 512
"""Tokens of a sequence, fewer where a model has fewer positions."""

DEFAULT_SEQUENCES = 128
"""Sequences of a calibration, if nothing else is asked for."""

ROWS = 4096
"""Rows kept of every input: all of them are of one bucket, where a Lance has several."""


@dataclass(frozen=True)
class Piece:
    """A sequence to run: special tokens in front, then a stretch of a document."""

    key: str
    tokens: list[int]


def read_documents(path: Path) -> list[str]:
    """The documents of a file, in order.

    Raises:
        DataError: it cannot be read, or holds no words; a line of JSON that is no text is named.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start}); convert it") from error
    if path.suffix == ".jsonl":
        documents = [_line(path, n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    else:
        documents = [part.strip() for part in content.split("\f")]
    found = [document for document in documents if document.strip()]
    if not found:
        raise DataError(f"{path}: holds no words, wanted texts to calibrate on")
    return found


def _line(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} is no JSON ({error})") from error
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise DataError(f'{path}: line {number} is no text, wanted a string or {{"text": ...}}')
    return text


def pieces(model: CausalLM, documents: Sequence[str], count: int, seed: int) -> list[Piece]:
    """``count`` sequences of the documents, or all there are if those are fewer, chosen at random by ``seed``."""
    found: list[Piece] = []
    for number, document in enumerate(documents):
        tokens, given = model.encode(document)
        room = min(SEQUENCE, model.positions) - given
        for start in range(given, len(tokens), room):
            found.append(Piece(f"{number:03d}-{start:06d}", tokens[:given] + tokens[start : start + room]))
    if len(found) <= count:
        return found
    chosen = random.Random(seed).sample(range(len(found)), count)
    return [found[index] for index in sorted(chosen)]


def fingerprint(chosen: Sequence[Piece]) -> str:
    """SHA-256 over the tokens of the sequences."""
    return sha256_text("\n".join(" ".join(map(str, piece.tokens)) for piece in chosen))


class TextObserver(LinearHooks):
    """Observes a causal LM that runs text: all its rows are of one bucket."""

    def __init__(self, model: CausalLM, statistics: Statistics) -> None:
        super().__init__(model.model, model.structure)
        self._statistics = statistics

    def observe(self, group: LinearGroup, linear: str, rows: Tensor, *, first: bool) -> None:
        """Count the rows, and add those of the group's first linear to the statistics."""
        bucket = f"{TASK}/{Role.TEXT.name.lower()}"
        self._statistics.count(linear, bucket, rows.shape[0])
        if first:
            self._statistics.add(group.key, bucket, rows)


@torch.inference_mode()
def collect_texts(
    model: CausalLM,
    chosen: Sequence[Piece],
    statistics: Statistics,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> None:
    """Run the sequences and add what is seen to ``statistics``."""
    with TextObserver(model, statistics):
        for index, piece in enumerate(chosen):
            progress(index, len(chosen), piece.key)
            model.model(
                input_ids=torch.tensor([piece.tokens], device=model.device), use_cache=False, logits_to_keep=1
            )
        progress(len(chosen), len(chosen), "")
