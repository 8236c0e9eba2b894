"""Removing variants and calibrations in words: what would go, what refers to it, what went; for commands and app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core import removal
from core.removal import Removable
from core.store import Store
from core.store.columns import size


@dataclass(frozen=True)
class Begun:
    """A variant that a job has begun and not ended."""

    found: Removable
    checkpoint: str | None
    recipe: str | None
    bits: float | None
    running: bool
    """Whether the job is still at it, as far as the database knows."""


def begun(store: Store) -> list[Begun]:
    """The variants that a job has begun, and not ended yet or never."""
    result = []
    for found in removal.begun(store):
        # Whether a job is at it the database says: to try the folder's lock might be in the way of a job that starts.
        made = store.query(
            "SELECT checkpoint, recipe, bits, state FROM runs WHERE kind = 'quantize' AND variant = ? "
            "ORDER BY id DESC LIMIT 1",
            (found.name,),
        )
        row: dict[str, Any] = {"checkpoint": None, "recipe": None, "bits": None, "state": "lost"}
        row |= made[0] if made else {}
        running = row["state"] == "running"
        result.append(Begun(found, row["checkpoint"], row["recipe"], row["bits"], running))
    return result


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def what(found: Removable) -> str:
    """What it is: finished, with or without something beside it, or only what is left."""
    if not found.finished:
        return (
            f"never finished; {_counted(found.layers, 'layer')} of it done"
            if found.layers
            else "never finished"
        )
    return "with what a killed job left beside it" if found.left else ""


def refers(store: Store, found: Removable) -> str:
    """Who names it, and stays."""
    if found.kind == "variant":
        runs = int(
            store.value("SELECT count(*) FROM runs WHERE kind = 'evaluate' AND variant = ?", (found.name,))
        )
        return (
            f"{_counted(runs, 'run')} of it stay{'s' * (runs == 1)}, with every output"
            if runs
            else "no run of it"
        )
    made = [row["name"] for row in store.checkpoints("variant") if _made_with(row["details"], found.name)]
    if not made:
        return "no variant was made with it"
    return f"{', '.join(made)} {'was' if len(made) == 1 else 'were'} made with it and stay{'s' * (len(made) == 1)}"


def _made_with(details: object, calibration: str) -> bool:
    return isinstance(details, dict) and details.get("calibration") == calibration


def done(found: Removable) -> str:
    """What was removed and how much is free again."""
    about = what(found)
    return f"{found.name} removed{f' ({about})' if about else ''}, {size(found.size_bytes)} freed"
