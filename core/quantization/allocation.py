"""Choosing a width for every group of linears so that the least is lost within so many bytes; no torch.

A multiple-choice knapsack: of each group's widths one is taken. Starting from the narrowest, the step that saves most
loss for each byte is taken until none fits. Only widths on the lower convex hull of (bytes, loss) are steps, which
makes this the optimum of the relaxed problem but for the last steps (Sinha and Zoltners 1979): it is off by at most the
loss that one step saves.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import UsageError


@dataclass(frozen=True)
class Option:
    """A width that a group may take: ``nbytes`` as stored and the ``loss`` that is predicted for it."""

    bits: int
    nbytes: int
    loss: float


def hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best for some price of a byte, from the smallest on: loss falls, and ever more slowly."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.loss)):
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _saving(kept[-2], kept[-1]) <= _saving(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def _saving(before: Option, after: Option) -> float:
    """Loss saved for each byte."""
    return (before.loss - after.loss) / (after.nbytes - before.nbytes)


def allocate(options: Mapping[str, Sequence[Option]], allowance: int) -> dict[str, Option]:
    """The option of each group.

    Args:
        options: by group, at least one each.
        allowance: bytes for all groups together.

    Raises:
        UsageError: even the smallest options take more.
    """
    steps = {group: hull(found) for group, found in options.items()}
    taken = dict.fromkeys(steps, 0)
    used = sum(found[0].nbytes for found in steps.values())
    if used > allowance:
        raise UsageError(
            f"the narrowest widths take {used:,} bytes, the budget is {allowance:,}: raise it, or allow fewer bits"
        )
    waiting = [(-_saving(found[0], found[1]), group) for group, found in steps.items() if len(found) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, group = heapq.heappop(waiting)
        found, at = steps[group], taken[group]
        more = found[at + 1].nbytes - found[at].nbytes
        if used + more > allowance:
            continue
        used, taken[group] = used + more, at + 1
        if at + 2 < len(found):
            heapq.heappush(waiting, (-_saving(found[at + 1], found[at + 2]), group))
    return {group: found[taken[group]] for group, found in steps.items()}
