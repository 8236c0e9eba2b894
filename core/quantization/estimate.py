"""How long quantizing will take: operations counted from shapes and recipe, times what a short probe of the device
says each takes. An estimate of computing alone: what reading and writing add where they cannot keep up is not in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch

from core.calibration.statistics import DEFAULT_ROWS, rows_kept
from core.checkpoints.layout import Layout
from core.quantization.awq import candidates
from core.quantization.gptq import Curvature, compensate, inverse_factor
from core.quantization.groups import LinearGroup
from core.quantization.recipe import Recipe
from core.quantization.rounding import Rounding
from core.quantization.scheme import CHANNEL, Scheme

BUCKETS = 3
"""Buckets of rows that an input is taken to have: an expert's roles in one task."""

COLUMNS = 2048
"""About the columns of the weights that are probed."""


@dataclass(frozen=True)
class Work:
    """Operations, by what bounds them."""

    plain: float = 0.0
    """Weights rounded in plain ranges and read back."""
    searched: float = 0.0
    """The same in searched ranges."""
    products: float = 0.0
    """Multiplications and additions of matrix products."""
    compensated: float = 0.0
    """Weights rounded column by column."""
    factored: float = 0.0
    """Channels cubed of second moments that are factorised and inverted."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def at(self, seconds: Work) -> float:
        """Seconds at ``seconds`` for each."""
        return sum(a * b for a, b in zip(astuple(self), astuple(seconds), strict=True))


def work_of(group: LinearGroup, layout: Layout, recipe: Recipe, sequence_tokens: int = 0) -> Work:
    """What quantizing one group of linears takes, with so many tokens in sequences that are carried along."""
    shapes = [layout.shapes[f"{name}.weight"] for name in group.linears]
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
    weights = rows * columns
    if not recipe.needs_calibration:
        return Work(searched=weights) if recipe.ranges else Work(plain=weights)
    step = recipe.values if group.kind == "o" else recipe.step_of(group.kind)
    exponents = 0 if step is None else step.exponents
    one = torch.ones(1)
    tried = sum(1 for _ in candidates(one, one, exponents, duo=getattr(step, "duo", True)))
    found = Work(plain=3 * weights)
    found += Work(searched=(tried + 1) * weights) if recipe.ranges else Work(plain=tried * weights)
    # The block of gate and up ends behind down, which has as many weights as one of the two.
    behind = weights + (weights // 2 if group.kind == "gate_up" else 0)
    found += Work(products=2 * recipe.rows * behind * (tried + 5))
    if recipe.gptq:
        sample = BUCKETS * rows_kept(DEFAULT_ROWS, columns)
        found += Work(
            products=2 * sample * columns**2 + weights * columns, compensated=weights, factored=columns**3
        )
    if recipe.follows:
        experts = len(layout.structure.experts)
        tokens = sequence_tokens / experts
        # Two runs of the whole layer, and about two of half of it and of all of it for each expert.
        passes = 2 + 2 * experts
        found += Work(
            products=2 * tokens * (passes * weights + columns**2 + 2 * weights) + 10 * weights * columns,
            factored=3 * columns**3,
        )
    return found


def estimate(layout: Layout, recipe: Recipe, device: torch.device, sequence_tokens: int = 0) -> float:
    """Seconds that quantizing would take on ``device``, which is probed for about a second."""
    # Widths of one format take about as long as each other.
    total: dict[str, Work] = {}
    schemes: dict[str, Scheme] = {}
    for group in layout.structure.groups():
        scheme = recipe.scheme_of(group)
        schemes.setdefault(scheme.kind, scheme)
        total[scheme.kind] = total.get(scheme.kind, Work()) + work_of(group, layout, recipe, sequence_tokens)
    return sum(work.at(probe(schemes[kind], device)) for kind, work in total.items())


@torch.inference_mode()
def probe(scheme: Scheme, device: torch.device) -> Work:
    """Seconds that one of each operation takes on ``device``."""
    wide = device.type == "cuda"
    columns = COLUMNS if scheme.group_size == CHANNEL else COLUMNS // scheme.group_size * scheme.group_size
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8192 if wide else 128, columns, generator=generator).to(device)
    importance = torch.ones(columns, device=device)
    plain, searched = Rounding(scheme), Rounding(scheme, searched=True)
    x = weight[:512]
    few = math.gcd(columns, 1024) if scheme.group_size == CHANNEL else scheme.width(columns) * 4
    moments = Curvature(torch.diag(importance[:few]), 0.0).hessian
    grid = plain.plain().grid(weight[:, :few].contiguous(), importance[:few])
    size = 4096 if wide else 512
    square = torch.eye(size, device=device)
    return Work(
        plain=_seconds(lambda: plain.roundtrip([weight], importance), device) / weight.numel(),
        searched=_seconds(lambda: searched.roundtrip([weight], importance), device) / weight.numel(),
        products=_seconds(lambda: x @ weight.t(), device) / (2 * x.numel() * len(weight)),
        compensated=_seconds(lambda: compensate(weight[:, :few], moments, grid), device)
        / (len(weight) * few),
        factored=_seconds(lambda: inverse_factor(square, 0.01), device) / size**3,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The lesser of two times, after one that warms up."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])
