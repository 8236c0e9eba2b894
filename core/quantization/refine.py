"""The section ``refine`` of a recipe: what of a finished variant is learned from calibration samples; no torch.

``core.refinement`` does it, after the last layer and before the variant gets its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import UsageError
from core.quantization.scheme import Scheme
from core.quantization.tables import Tables

LEARNABLE = ("scales", "norms")
"""What can be learned: the scales of all target linears' groups, and the weights of the decoder's norms."""


@dataclass(frozen=True)
class Refine:
    """How to learn; codes and zeros stay as they are."""

    learn: tuple[str, ...] = LEARNABLE
    steps: int = 100
    """Of Adam, for each expert."""
    rate: float = 0.003
    """Greatest change of a logarithm in a step."""
    batch: int = 8
    """Answers, texts or velocities that a step looks at."""
    held_out: float = 0.25
    """Share of the samples that is not learned from and decides whether the result is kept."""
    seed: int = 0
    """Which samples are held out, and the order of the others."""


def read_refine(tables: Tables, content: Any, schemes: Sequence[Scheme]) -> Refine:
    """The table ``refine`` of a recipe with these formats.

    Raises:
        UsageError: an unknown key, a value out of its range, or a format whose scales cannot be learned.
    """
    known = ("learn", "steps", "rate", "batch", "held_out", "seed")
    table = tables.table(content, "refine", known)
    kinds = {scheme.kind for scheme in schemes}
    default = LEARNABLE if kinds == {"int"} else ("norms",)
    learn = tuple(tables.value(table, "refine.learn", list, list(default)))
    tables.known("refine.learn", learn, LEARNABLE)
    if not learn or len(set(learn)) < len(learn):
        raise UsageError(
            f"{tables.path}: refine.learn is {list(learn)}, wanted one or both of {', '.join(LEARNABLE)}"
        )
    if "nvfp4" in kinds and "scales" in learn:
        raise UsageError(
            f"{tables.path}: refine.learn has 'scales', which nvfp4 stores in steps of 6 to 12 %, too coarse to be "
            'learned with codes as they are; write learn = ["norms"]'
        )
    if "fp8" in kinds:
        raise UsageError(
            f"{tables.path}: has refine, but gradients do not pass the rounding of fp8's activations; leave it out"
        )
    found = Refine(
        learn,
        tables.value(table, "refine.steps", int, Refine.steps),
        tables.value(table, "refine.rate", float, Refine.rate),
        tables.value(table, "refine.batch", int, Refine.batch),
        tables.value(table, "refine.held_out", float, Refine.held_out),
        tables.value(table, "refine.seed", int, Refine.seed),
    )
    least = {"steps": 1, "batch": 1, "seed": 0}
    for key, bound in least.items():
        if getattr(found, key) < bound:
            raise UsageError(f"{tables.path}: refine.{key} is {getattr(found, key)}, wanted at least {bound}")
    for key in ("rate", "held_out"):
        if not 0 < getattr(found, key) < 1:
            raise UsageError(
                f"{tables.path}: refine.{key} is {getattr(found, key)}, wanted more than 0 and less than 1"
            )
    return found
