"""Weights that make up for what earlier rounding has done to their inputs, found before they are rounded themselves.

A linear of the unquantized model gives ``W x``; in the quantized one it reads ``x~``, and there is an error ``e`` left
to make up for: what its output, or the residual stream behind it, lacks (GPTAQ, arXiv 2504.02692, and Qronos, arXiv
2505.11695, take ``e = W (x - x~)``). The weights that lower it most are ``W + C H^-1`` with ``C = sum w e x~^T`` and
``H = sum w x~ x~^T``, a ridge regression. What it explains of the rows it was fitted to is partly chance, so it is
fitted to either half of the sequences and tried on the other. The share r of it that holds there becomes 2 r / (1 + r)
for all of them, as chance falls with the number of rows (Spearman and Brown, 1910), and so much of the change is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import WorkbenchError
from core.quantization.gptq import MAX_DAMPING, SecondMoments

RIDGE = 0.1
"""Share of the mean diagonal that is added to the moments."""


class ErrorMoments:
    """What half of the sequences say of a linear's input and of the error it is to make up for."""

    def __init__(self, outputs: int, channels: int, device: torch.device) -> None:
        self.inputs = SecondMoments(channels, device)
        self.cross = torch.zeros(outputs, channels, device=device)
        """float32 [N, K], ``sum w e x^T``."""

    def add(self, rows: Tensor, weight: Tensor, error: Tensor) -> None:
        """Take in inputs float32 [n, K], what each counts [n], and the errors [n, N] of their outputs."""
        self.inputs.add(rows, weight)
        self.cross.addmm_((error * weight.unsqueeze(-1)).t(), rows)


def change(cross: Tensor, moments: Tensor, damping: float = RIDGE) -> Tensor:
    """The change of the weights, float32 [N, K], that makes up for most of an error.

    Args:
        cross: float32 [N, K], of the errors and the inputs.
        moments: float32 [K, K], of the inputs.
        damping: share of the mean diagonal that is added to the diagonal; raised tenfold while it is too little.

    Raises:
        WorkbenchError: no damping up to ten times the mean diagonal helps.
    """
    mean = moments.diagonal().mean().clamp(min=1e-30)
    while damping <= MAX_DAMPING:
        damped = moments.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not int(failed.item()) and bool(lower.diagonal().isfinite().all()):
            return torch.cholesky_solve(cross.t(), lower).t()
        damping *= 10
    raise WorkbenchError(
        f"second moments {list(moments.shape)} cannot be factorised even with {MAX_DAMPING:g} times their mean "
        "diagonal added; calibrate again, on more samples"
    )


def corrected(weight: Tensor, halves: Sequence[ErrorMoments]) -> tuple[Tensor, float, SecondMoments]:
    """The weights to round, from what two halves of the sequences say.

    Args:
        weight: float32 [N, K].
        halves: two; they are used up.

    Returns:
        ``weight`` changed, the share of the whole change that was taken (0 to 1), and the inputs' moments.
    """
    explained = energy = 0.0
    for fitted, other in (halves, halves[::-1]):
        tried = change(fitted.cross, fitted.inputs.total)
        explained += float((tried * other.cross).sum(dtype=torch.float64))
        energy += float(((tried @ other.inputs.total) * tried).sum(dtype=torch.float64))
        del tried
    held = min(1.0, max(0.0, explained / energy)) if energy > 0 else 0.0
    share = 2 * held / (1 + held)
    one, other = halves
    one.inputs.join(other.inputs)
    one.cross += other.cross
    if share:
        weight = weight + share * change(one.cross, one.inputs.total)
    return weight, share, one.inputs
