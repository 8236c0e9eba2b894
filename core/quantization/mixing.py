"""Choosing the widths of a mixed recipe by measured sensitivity, within its budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from core.checkpoints.layout import Layout
from core.errors import UsageError
from core.quantization import sensitivity, widths
from core.quantization.allocation import Option, allocate
from core.quantization.groups import LinearGroup
from core.quantization.recipe import Recipe
from core.quantization.sensitivity import GroupResult


def is_open(recipe: Recipe, layout: Layout) -> bool:
    """Whether widths are left to choose."""
    groups = layout.structure.groups()
    return recipe.mixed is not None and any(not widths.pinned(group, recipe.widths) for group in groups)


def choose(recipe: Recipe, layout: Layout, results: Sequence[GroupResult] | None) -> Recipe:
    """An open recipe with the widths that lose least within its budget.

    Args:
        results: what was measured of every group; one of which nothing was, as no sample reached it, keeps the recipe's
            own width. None takes every weight for as sensitive as any other: good enough to foretell sizes.

    Raises:
        UsageError: even the narrowest widths take more than the budget.
    """
    assert recipe.mixed is not None
    groups = layout.structure.groups()
    linears = layout.structure.target_linears()
    weights = sum(math.prod(layout.shapes[f"{name}.weight"]) for name in linears)
    unknown: list[LinearGroup] = []
    if results is None:
        options = {group.key: _alike(group, recipe, layout) for group in groups}
    else:
        options = sensitivity.options(results)
        unknown = [group for group in groups if group.key not in options]
        options |= {group.key: [_usual(group, recipe, layout)] for group in unknown}
    try:
        found = allocate(options, recipe.mixed.allowance(weights))
    except UsageError as error:
        kept = (
            f"; {len(unknown)} groups that no sample reached keep {recipe.scheme.bits} bits"
            if unknown
            else ""
        )
        raise UsageError(f"recipe {recipe.name}: {error}{kept}") from None
    free = [group.key for group in groups if not widths.pinned(group, recipe.widths)]
    return recipe.with_widths({key: found[key].bits for key in free})


def in_words(recipe: Recipe, layout: Layout) -> str:
    """How many groups have which width: ``3 bits: 4, 4 bits: 20, 6 bits: 8``."""
    counts = Counter(recipe.scheme_of(group).bits for group in layout.structure.groups())
    return ", ".join(f"{bits} bits: {counts[bits]}" for bits in sorted(counts))


def _usual(group: LinearGroup, recipe: Recipe, layout: Layout) -> Option:
    """The only option of a group of which nothing is known beside others that were measured: the recipe's own width."""
    bits = recipe.scheme_of(group).bits
    return Option(bits, sensitivity.nbytes(group, recipe, bits, layout), 0.0)


def _alike(group: LinearGroup, recipe: Recipe, layout: Layout) -> list[Option]:
    """The options of a group of which nothing is known: each bit takes three quarters of the error's energy."""
    sizes = {
        bits: sensitivity.nbytes(group, recipe, bits, layout)
        for bits in sensitivity.candidates(group, recipe)
    }
    return [Option(bits, size, size / bits * 4.0**-bits) for bits, size in sizes.items()]
