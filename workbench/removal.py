"""Removing variants and calibrations in words: what would go, what refers to it, what went; for commands and app."""

from __future__ import annotations

from core.removal import Removable
from core.store import Store
from core.store.columns import size


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
        runs = int(store.value("SELECT count(*) FROM runs WHERE variant = ?", (found.name,)))
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
