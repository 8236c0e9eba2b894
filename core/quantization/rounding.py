"""How a group of linears is rounded: its grid of values, by the plain range or searched, and the way that loses
least of those a recipe names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.quantization import fp8, integer, nvfp4
from core.quantization.gptq import Curvature, compensate
from core.quantization.losses import BlockLoss, Inputs
from core.quantization.recipe import GptqStep
from core.quantization.scheme import Scheme
from kernels.fp8 import round_rows

Grid = integer.IntegerGrid | nvfp4.Nvfp4Grid | fp8.Fp8Grid
"""The values a weight may take; ``encode`` rounds a whole weight to it, ``nearest`` a column, to the same bits."""

Quantized = integer.Quantized | nvfp4.Nvfp4Quantized | fp8.Fp8Quantized
"""A rounded weight as it is stored; ``dequantize`` is what runs."""


@dataclass(frozen=True)
class Rounding:
    """A format, and whether its ranges are searched. Linears of a group are rounded stacked on one another."""

    scheme: Scheme
    searched: bool = False
    """Search each group's range for the least error."""
    weighed: bool = True
    """In the search an error counts the mean square of its channel; otherwise all errors count alike."""
    scale_dtype: torch.dtype = torch.bfloat16
    """dtype of the stored scales of integers; the other formats have theirs."""

    def plain(self) -> Rounding:
        """The same format by the range of each group."""
        return replace(self, searched=False)

    def grid(self, stacked: Tensor, importance: Tensor) -> Grid:
        """The grid of a group's stacked weights float32 [N, K] whose channels have mean squares [K]."""
        if self.searched and not self.weighed:
            importance = torch.ones_like(importance)
        if self.scheme.kind == "nvfp4":
            return nvfp4.searched_grid(stacked, importance) if self.searched else nvfp4.plain_grid(stacked)
        if self.scheme.kind == "fp8":
            return fp8.searched_grid(stacked, importance) if self.searched else fp8.plain_grid(stacked)
        if self.searched:
            return integer.searched_grid(stacked, importance, self.scheme, self.scale_dtype)
        return integer.plain_grid(stacked, self.scheme, self.scale_dtype)

    def seen(self, rows: Tensor) -> Tensor:
        """What linears in this format make of the rows float32 [n, K] that they are given."""
        return round_rows(rows) if self.scheme.kind == "fp8" else rows

    def roundtrip(self, weights: Sequence[Tensor], importance: Tensor) -> list[Tensor]:
        """What a group's ``weights`` [N, K] each become when stored and read back, as float32."""
        stacked = torch.cat(list(weights))
        runs = self.grid(stacked, importance).encode(stacked).dequantize().float()
        return list(runs.split([weight.shape[0] for weight in weights]))


@dataclass(frozen=True)
class Rounded:
    """A group's rounded weights and how they came about."""

    weights: Sequence[Quantized]
    way: str
    """``nearest`` in plain ranges, ``ranges`` in searched ones, ``gptq`` with errors compensated."""
    loss: float | None
    """Relative loss of the group's block; None where no rows are known."""
    damping: float | None = None
    shrinkage: float | None = None


def round_blindly(weights: Sequence[Tensor], rounding: Rounding) -> Rounded:
    """Round ``weights`` [N, K] each to nearest, as far as that can be done without a calibration: in plain ranges,
    or in ranges searched with all errors alike.
    """
    stacked = torch.cat(list(weights))
    searched = rounding.searched and not rounding.weighed
    grid = (rounding if searched else rounding.plain()).grid(stacked, torch.ones_like(stacked[0]))
    sizes = [len(weight) for weight in weights]
    return Rounded(grid.encode(stacked).split(sizes), "ranges" if searched else "nearest", None)


def round_best(
    weights: Sequence[Tensor],
    inputs: Inputs,
    loss: BlockLoss,
    rounding: Rounding,
    gptq: GptqStep | None,
    curvature: Curvature | None = None,
) -> Rounded:
    """Round a group's weights in every way the recipe names and keep the one that loses least.

    Plain ranges are always among the ways, so no step ends with a greater loss than leaving it out.

    Args:
        weights: float32 [N, K] each, folded.
        inputs: what they see, scaled as they are.
        loss: of the group's block.
        rounding: format and ranges.
        gptq: how to compensate errors, if at all.
        curvature: what to compensate them by, if it is not that of the inputs' sample.
    """
    one = torch.ones_like(inputs.mean_abs)
    best: Rounded | None = None
    for tried in _ways(weights, inputs, rounding, gptq, curvature):
        value = loss([part.dequantize().float() for part in tried.weights], one)
        if best is None or best.loss is None or value < best.loss:
            best = replace(tried, loss=value)
    assert best is not None  # plain ranges are always tried
    return best


def _ways(
    weights: Sequence[Tensor],
    inputs: Inputs,
    rounding: Rounding,
    gptq: GptqStep | None,
    curvature: Curvature | None,
) -> Iterator[Rounded]:
    stacked = torch.cat(list(weights))
    sizes = [len(weight) for weight in weights]
    grid = rounding.plain().grid(stacked, inputs.mean_sq)
    yield Rounded(grid.encode(stacked).split(sizes), "nearest", None)
    if rounding.searched:
        grid = rounding.grid(stacked, inputs.mean_sq)
        yield Rounded(grid.encode(stacked).split(sizes), "ranges", None)
    if gptq is not None:
        if curvature is None:
            curvature = Curvature.of(inputs.sample, inputs.sample_weight, inputs.mean_sq)
        found = compensate(stacked, curvature.hessian, grid, gptq.damping)
        parts = grid.encode(found.weight).split(sizes)
        yield Rounded(parts, "gptq", None, found.damping, curvature.shrinkage)
