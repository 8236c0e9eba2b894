"""Exact folds: scale a group's input channels down where they are made and its weights' columns up.

``y = W x`` with ``x = n * h`` (a norm's weight, or the up projection's rows) equals ``(W diag(s)) (x /
s)``. A norm is stored rounded, so its folded weight is rounded first and the scale is what that rounded
weight implies: the product of the two stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_norm(norm: Tensor, s: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Divide a norm's weight by ``s``.

    Args:
        norm: float32 [K], the norm's weight as read.
        s: float32 [K], positive, the wanted scale of each channel.
        stored: dtype the norm is stored in; its rounding determines the scale.

    Returns:
        The folded norm in ``stored`` and the effective scale float32 [K] for the weights' columns, with
        ``folded * effective == norm`` to float32 precision. A channel whose norm is zero, or would round to
        zero or leave the range of ``stored``, keeps its norm.
    """
    kept = norm.to(stored)
    folded = (norm / s).to(stored)
    usable = (folded != 0) & folded.isfinite()
    folded = torch.where(usable, folded, kept)
    effective = torch.where(folded != 0, norm / folded.float(), torch.ones_like(norm))
    return folded, effective


def fold_rows(weight: Tensor, s: Tensor) -> Tensor:
    """Divide the rows of ``weight`` [N, K] by ``s`` [N], float32."""
    return weight / s.unsqueeze(-1)


def scale_columns(weight: Tensor, s: Tensor) -> Tensor:
    """Multiply the columns of ``weight`` [N, K] by ``s`` [K], float32."""
    return weight * s
