"""Measured sensitivities on disk; no torch.

They are JSON files in ``sensitivities/`` of the database's folder. One is of a checkpoint, a recipe and a
calibration; a mixed recipe chooses its widths by the newest one that is of its own three.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import DataError, UsageError
from core.files import write_text

FORMAT = 1

Result = dict[str, Any]

_FOLDER = "sensitivities"


def path_of(data_dir: Path, name: str) -> Path:
    """The file of the result of that name."""
    return data_dir / _FOLDER / f"{name}.json"


def write(data_dir: Path, found: Result) -> None:
    """Keep a result under its name."""
    write_text(path_of(data_dir, found["name"]), json.dumps(found, indent=1) + "\n")


def read(file: Path) -> Result:
    """A result.

    Raises:
        DataError: the file is gone or damaged.
    """
    found = _parsed(file)
    if found["format"] != FORMAT:
        raise DataError(f"{file}: format {found['format']}, this version reads {FORMAT}; measure again")
    return found


def _parsed(file: Path) -> Result:
    try:
        found: Result = json.loads(file.read_text(encoding="utf-8"))
        for key in ("format", "name", "checkpoint", "recipe", "made_from", "measured_on", "groups"):
            found[key]
        for row in found["groups"]:
            _forget_zeros(row["scores"], row["powers"])
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); measure again") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error!r}); delete it and measure again") from error
    return found


def _forget_zeros(scores: dict[str, float | None], powers: dict[str, float | None]) -> None:
    """Take scores of exactly zero for not measured: earlier versions wrote them for groups that no sample reached."""
    for score in [score for score, value in powers.items() if value == 0]:
        powers[score] = scores[score] = scores[f"{score}_se"] = None


def files(data_dir: Path) -> list[Path]:
    """The files of all results, the newest first."""
    return sorted(
        (data_dir / _FOLDER).glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name), reverse=True
    )


def stored(data_dir: Path, wanted: list[str]) -> Result | None:
    """The newest result made from checkpoint, recipe and calibration of these fingerprints, or None.

    Raises:
        DataError: a file of results is damaged.
    """
    for found in map(_parsed, files(data_dir)):
        if found["made_from"] == wanted and found["format"] == FORMAT:
            return found
    return None


def named(data_dir: Path, name: str) -> Result:
    """The result of that name.

    Raises:
        UsageError: there is none.
        DataError: its file is damaged.
    """
    file = path_of(data_dir, name)
    if not file.is_file():
        known = [other.stem for other in files(data_dir)]
        there = (
            f"`variants sensitivities` lists {', '.join(known)}"
            if known
            else "`variants sensitivity CHECKPOINT --calibration NAME` measures one"
        )
        raise UsageError(f"{name}: no such sensitivity; {there}")
    return read(file)
