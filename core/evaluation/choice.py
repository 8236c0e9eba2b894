"""Which two runs a person means by run numbers, variant names or checkpoint names."""

from __future__ import annotations

from typing import Any

from core.errors import UsageError
from core.evaluation.baseline import BF16
from core.store import Store

Row = dict[str, Any]


def pairs(store: Store, first: str | None, second: str, suite: str | None = None) -> list[tuple[int, int]]:
    """Runs to compare, (first, second), one pair per suite.

    A number is that run; a name stands for its newest finished evaluation of each suite (of ``suite``, if
    given). A bf16 name, or no ``first`` at all, stands for the bf16 run that the second was scored against,
    if it is one of that name.

    Raises:
        UsageError: there is no run of that number, nothing of that name was evaluated, or the second was not scored
            against a bf16 run.
    """
    if first is not None and _is_number(first) and _is_number(second):
        return [(int(first), int(second))]
    found = []
    for row in _evaluations(store, second, suite or _suite_of(store, first)):
        if first is None:
            if row["baseline_run_id"] is None:
                raise UsageError(
                    f"run {row['id']} of {row['name']} has no baseline; name the run to compare it with"
                )
            found.append((row["baseline_run_id"], row["id"]))
        elif _is_number(first):
            found.append((int(first), row["id"]))
        else:
            found += [(other["id"], row["id"]) for other in _counterparts(store, first, row)]
    if not found:
        raise UsageError(
            f"{first} and {second} were not evaluated on the same suite; `evaluate NAME --suite SUITE` does that"
        )
    return found


def _is_number(name: str) -> bool:
    """Whether it is a run's number, and not a name: plain digits, no more than Python reads."""
    return name.isascii() and name.isdigit() and len(name) < 1000


def _suite_of(store: Store, name: str | None) -> str | None:
    """The suite of a run given by number."""
    return str(store.run(int(name))["suite"]) if name is not None and _is_number(name) else None


def _evaluations(store: Store, name: str, suite: str | None) -> list[Row]:
    """The run of that number, or the newest finished evaluation of that name on each suite."""
    if _is_number(name):
        return [store.run(int(name))]
    suites = [suite] if suite else store.distinct("suite")
    rows = [row for each in suites if (row := _newest(store, name, each)) is not None]
    if not rows:
        known = sorted({str(row["name"]) for row in store.runs("kind=evaluate state=succeeded")})
        where = f" on {suite}" if suite else ""
        there = f"evaluated are {', '.join(known)}; " if known else ""
        way = f"`evaluate {name}{f' --suite {suite}' if suite else ''}` runs one"
        raise UsageError(f"{name}: no finished evaluation{where}; {there}{way}")
    return rows


def _counterparts(store: Store, name: str, row: Row) -> list[Row]:
    """The evaluation of ``name`` to set ``row`` against; none if ``name`` was not run on that suite."""
    if row["baseline_run_id"] is not None:
        own = store.run(row["baseline_run_id"])
        if name in (own["name"], own["checkpoint"]):
            return [own]
    found = _newest(store, name, row["suite"])
    return [] if found is None else [found]


def _newest(store: Store, name: str, suite: str) -> Row | None:
    """The newest finished evaluation of a variant's or a checkpoint's (bf16) name on a suite."""
    return store.latest_run(kind="evaluate", name=name, suite=suite) or store.latest_run(
        kind="evaluate", checkpoint=name, recipe=BF16, suite=suite
    )
