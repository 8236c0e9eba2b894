"""Running text that causal LMs are calibrated on: which there is, and what can be wrong with a wish for it; no torch.

What a file of texts is, ``core.evaluation.prose`` says. The text that comes with the workbench for it
(``texts/README.md``) is another than the one that is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.checkpoints.describe import CheckpointInfo
from core.errors import UsageError
from core.evaluation.prose import documents_of
from core.files import expanded

TASK = "text"
SHIPPED = Path(__file__).parent / "texts" / "holmes.txt"

DEFAULT_SEQUENCES = 128
"""Sequences of a calibration, if nothing else is asked for."""


def check_tasks(info: CheckpointInfo, tasks: Sequence[str]) -> None:
    """Check that a causal LM is to be calibrated on text alone.

    Raises:
        UsageError: it is to be on a task of Lance's.
    """
    if list(tasks) != [TASK]:
        raise UsageError(f"{info.name}: is no Lance and is calibrated on {TASK}, not on {', '.join(tasks)}")


def one_file(info: CheckpointInfo, files: Sequence[str]) -> str | None:
    """The file that texts are taken from; None stands for ``SHIPPED``.

    Raises:
        UsageError: several were given.
    """
    if len(files) > 1:
        raise UsageError(f"{info.name} is no Lance: give one file of texts at most")
    return next(iter(files), None)


def documents(file: str | None) -> tuple[str, list[str]]:
    """The name of a file of texts, ``SHIPPED`` for None, and its documents.

    Raises:
        DataError: it cannot be read, or holds no texts.
    """
    path = SHIPPED if file is None else expanded(file)
    return path.name, documents_of(path)
