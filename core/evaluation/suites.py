"""Suites: fixed lists of samples for one task, by name or from a JSON file of Lance's own formats; no torch."""

from __future__ import annotations

import json

from core.demo import SUITES
from core.errors import UsageError
from core.evaluation.samples import Suite
from core.files import expanded

PROSE = "text"
"""The suite of running text that comes with the workbench; ``text:FILE`` is that of a text file."""

DEFAULT_SUITES = ("demo-t2i", "demo-x2t")
"""The suites of what the embedded checkpoint was trained for, which an evaluation runs unless others are named."""


def names() -> list[str]:
    """The names of the suites of Lance's tasks that come with the workbench; ``PROSE`` is the other one."""
    return sorted(path.stem for path in SUITES.glob("*.json"))


def tasks() -> dict[str, str]:
    """By name, the task of each of ``names``."""
    return {
        name: json.loads((SUITES / f"{name}.json").read_text(encoding="utf-8"))["task"] for name in names()
    }


def load(name: str, limit: int | None = None, task: str | None = None) -> Suite:
    """The suite of that name, or the one in the JSON or JSON lines file of that path; ``text:FILE`` is running text.

    ``task`` says what a file holds that does not say so itself: prompts for pictures, clips or answers, and
    pictures to be edited or set in motion look alike in Lance's format.

    Raises:
        UsageError: no such name or file, or a file that may hold either of two tasks.
        DataError: the file has another shape, or a picture or clip of it is missing or none.
    """
    from core.evaluation import prose
    from core.evaluation.suite_files import read

    if name == PROSE:
        return prose.read(prose.SHIPPED, PROSE).head(limit)
    if name.startswith(f"{PROSE}:"):
        return prose.read(expanded(name.partition(":")[2])).head(limit)
    if name in names():
        return read(SUITES / f"{name}.json").head(limit)
    path = expanded(name)
    if path.is_file():
        return read(path, task).head(limit)
    raise UsageError(
        f"{name}: no such suite and no such file; suites are {', '.join([*names(), PROSE])}, "
        f"or give the path of a JSON file, or {PROSE}:FILE for running text"
    )
