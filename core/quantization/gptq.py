"""GPTQ (arXiv 2210.17323): round column by column, and let the columns to come make up for the error.

The grid (scales and zeros) is fixed before, from the weights as they are, so columns can be taken in the
order of their importance while groups stay contiguous: no ``g_idx`` is stored, and any reader of the format
reads the result. Only the weights that are rounded differ from rounding to nearest: ``compensate`` returns
weights whose nearest values on the grid are the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.errors import WorkbenchError

try:
    from kernels import rounding as kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

BLOCK = 128
"""Columns whose effect on the columns behind them is collected before it is applied."""

MAX_DAMPING = 10.0

MATRICES = 5
"""Matrices [K, K] of float32 that are held at once while the factor is computed."""

CHUNK = 1024
"""Rows of a sample whose products are added up at once."""


class Grid(Protocol):
    """Fixed scales; rounds single columns exactly as whole weights."""

    def columns(self) -> kernels.Columns:
        """The same grid for the kernel that rounds blocks of columns."""
        ...

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """What column ``column`` becomes if it holds ``weight`` float32 [N]."""
        ...


@dataclass(frozen=True)
class Compensated:
    """Weights float32 [N, K] to be rounded to nearest, and the damping it took."""

    weight: Tensor
    damping: float


@dataclass(frozen=True)
class Curvature:
    """Second moments of an input, ``sum w x x^T``, with what sampling has added to them taken out."""

    hessian: Tensor
    """float32 [K, K]."""
    shrinkage: float
    """Share of the moments across channels that was held to be chance, 0 to 1."""

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor, mean_sq: Tensor) -> Curvature:
        """From sampled rows, drawn towards the channels' own mean squares as far as the sample is too small.

        The share is Schaefer and Strimmer's (2005) for a diagonal target: the variance of the off-diagonal
        means over their squares. The diagonal is that of all tokens, not of the sample.

        Args:
            rows: float32 [n, K].
            weight: float32 [n], what each row counts, positive or zero.
            mean_sq: float32 [K], mean squares over all tokens, rows weighed in the same way.
        """
        moments = SecondMoments(rows.shape[1], rows.device)
        moments.add(rows, weight)
        return moments.curvature(mean_sq)

    def error(self, change: Tensor) -> float:
        """``tr(D H D^T)`` of a change D float32 [N, K] of the weights: the expected squared error of outputs."""
        return float(((change @ self.hessian) * change).double().sum())


class SecondMoments:
    """``sum w x x^T`` of rows as they come, and what tells how much of it is chance."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.total = torch.zeros(channels, channels, device=device)
        """float32 [K, K]."""
        self.count = 0
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._squares = self._weight.clone()
        self._lengths = self._weight.clone()

    def add(self, rows: Tensor, weight: Tensor) -> None:
        """Take in rows float32 [n, K] that count ``weight`` float32 [n], positive or zero."""
        for part, counts in zip(rows.split(CHUNK), weight.split(CHUNK), strict=True):
            weighed = part * counts.sqrt().unsqueeze(-1)
            self.total.addmm_(weighed.t(), weighed)
            squares = weighed.square_().double()
            self._lengths += squares.sum(-1).square().sum() - squares.square_().sum()
        self.count += rows.shape[0]
        self._weight += weight.sum(dtype=torch.float64)
        self._squares += weight.double().square().sum()

    def join(self, other: SecondMoments) -> None:
        """Take in the rows of ``other`` too, each counting what it did."""
        self.total += other.total
        self.count += other.count
        self._weight += other._weight
        self._squares += other._squares
        self._lengths += other._lengths

    def rescale(self, factor: float) -> None:
        """Let every row count ``factor`` times what it did."""
        self.total *= factor
        self._weight *= factor
        self._squares *= factor**2
        self._lengths *= factor**2

    def curvature(self, mean_sq: Tensor) -> Curvature:
        """What ``Curvature.of`` makes of the rows; ``total`` is used up."""
        weight, moments = float(self._weight), self.total
        if self.count < 2 or weight <= 0:
            return Curvature(torch.diag(mean_sq), 1.0)
        diagonal = moments.diagonal().clone()
        across = float(sum(part.square().sum(dtype=torch.float64) for part in moments.split(CHUNK)))
        across -= float(diagonal.square().sum(dtype=torch.float64))
        # Both as if the weights added up to one.
        variance = (float(self._lengths) - float(self._squares) * across / weight**2) / weight**2
        across /= weight**2
        shrinkage = min(1.0, max(0.0, variance / across)) if across > 0 else 1.0
        # Scaled to the mean squares of all tokens, so that correlations stay what the sample says.
        ratio = (mean_sq / diagonal.clamp(min=1e-30)).sqrt()
        ratio = torch.where(diagonal > 0, ratio, torch.zeros_like(ratio))
        moments.mul_(ratio.unsqueeze(0) * (1 - shrinkage)).mul_(ratio.unsqueeze(1))
        moments.diagonal().copy_(mean_sq)
        return Curvature(moments, shrinkage)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper triangular U float32 [K, K] with ``U^T U`` the inverse of the damped ``hessian``.

    From one Cholesky factorisation in reversed order: with ``H = R R^T`` and R upper triangular, U is the
    inverse of R. Where the factorisation fails, the damping is raised tenfold until it does not.

    Returns:
        U and the damping used.

    Raises:
        WorkbenchError: no damping up to ten times the mean diagonal helps.
    """
    mean = hessian.diagonal().mean()
    damped = hessian.flip(0, 1)
    added = 0.0
    while damping <= MAX_DAMPING:
        damped.diagonal().add_((damping - added) * mean)
        added = damping
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed.item()) and bool(lower.diagonal().isfinite().all()):
            # Two matrices less while the inverse is formed: these are what bounds the device's memory.
            del damped
            eye = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
            inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
            del lower, eye
            return inverse.flip(0, 1), damping
        damping *= 10
    raise WorkbenchError(
        f"second moments {list(hessian.shape)} cannot be factorised even with {MAX_DAMPING:g} times their mean "
        "diagonal added; calibrate again, on more samples"
    )


def compensate(weight: Tensor, hessian: Tensor, grid: Grid, damping: float = 0.01) -> Compensated:
    """Find the weights whose rounding to nearest on ``grid`` disturbs the outputs least, greedily.

    Args:
        weight: float32 [N, K].
        hessian: float32 [K, K], second moments of the input. A channel that was never seen is rounded as it
            is: other data may use it.
        grid: fixed scales.
        damping: share of the mean diagonal that is added to the diagonal.

    Raises:
        WorkbenchError: the moments cannot be factorised.
    """
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    permuted = hessian[order][:, order]
    dead = permuted.diagonal() <= 0
    permuted.masked_fill_(dead.unsqueeze(0), 0).masked_fill_(dead.unsqueeze(1), 0)
    filling = torch.where(diagonal.mean() > 0, diagonal.mean(), torch.ones_like(diagonal[0]))
    permuted.diagonal().copy_(torch.where(dead, filling, permuted.diagonal()))
    factor, used = inverse_factor(permuted, damping)
    del permuted
    work = weight[:, order].t().contiguous()
    if work.is_cuda and kernels is not None:
        _by_kernel(work, factor, order, grid)
    else:
        _by_columns(work, factor, order, grid)
    result = torch.empty_like(weight)
    result[:, order] = work.t()
    return Compensated(result, used)


def _by_columns(work: Tensor, factor: Tensor, order: Tensor, grid: Grid) -> None:
    """Turn the columns of a weight, rows of ``work`` [K, N], into what is rounded to nearest, in their order."""
    columns = order.tolist()
    count = work.shape[0]
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        block = work[start:stop]
        errors = torch.empty_like(block)
        inside = factor[start:stop, start:stop]
        for i in range(stop - start):
            column = block[i]
            error = (column - grid.nearest(column, columns[start + i])) / inside[i, i]
            errors[i] = error
            if i + 1 < stop - start:
                block[i + 1 :] -= inside[i, i + 1 :].unsqueeze(-1) * error
        if stop < count:
            work[stop:] -= factor[start:stop, stop:].t() @ errors


def _by_kernel(work: Tensor, factor: Tensor, order: Tensor, grid: Grid) -> None:
    """As ``_by_columns``, a block of columns a launch."""
    columns, factor = grid.columns(), factor.contiguous()
    groups = (order // (len(order) // len(columns.scale))).int()
    count = work.shape[0]
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        errors = kernels.compensate_block(work, factor, groups, columns, start, stop, BLOCK)
        if stop < count:
            work[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
