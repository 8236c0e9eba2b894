"""Running text as a suite: what a model's perplexity is measured on.

A text file is one document, or several divided by form feeds. The suite ``text`` comes with the workbench.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import DataError
from core.evaluation.suites import Sample, Suite

TASK = "perplexity"
"""The task of every suite made here."""

NAME = "text"
SHIPPED = Path(__file__).parent / "texts" / "alice.txt"
"""What the suite ``text`` reads; ``texts/README.md`` says where it comes from."""

SUFFIXES = (".txt", ".text", ".md")
_DIVIDER = "\f"


def is_text(name: str) -> bool:
    """Whether a suite of this name, or in the file of this path, is running text."""
    return name == NAME or Path(name).suffix.lower() in SUFFIXES


def read(path: Path, name: str | None = None) -> Suite:
    """The suite in a text file, a sample for each document.

    Raises:
        DataError: it cannot be read, is no UTF-8, or holds no words.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start}); convert it") from error
    documents = [document.strip() for document in text.split(_DIVIDER) if document.strip()]
    if not documents:
        raise DataError(f"{path}: holds no words, wanted running text")
    samples = tuple(
        Sample(key=f"{number:03d}", task=TASK, prompt=document)
        for number, document in enumerate(documents, 1)
    )
    return Suite(name or path.stem, TASK, samples, {}, path)
