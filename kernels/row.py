"""One row of activations through a quantized linear, with the norm before it or the residual stream behind it.

Decoding spends a fifth of its time in kernels that only norm and add: they are as short as their own launches. A
``direct_matmul`` does both on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import RowNorm
from kernels.config import Config, choose
from kernels.decoder_ops import rms_norm
from kernels.linear import Weight, device_of, linear, linear_swiglu
from kernels.tiles import TiledWeight

_HALF = (torch.bfloat16, torch.float16)


def _direct(weight: Weight, gated: bool) -> Config | None:
    """The configuration for one row of a weight, if that is ``direct_matmul``."""
    if not isinstance(weight, TiledWeight):
        return None
    config = choose(*device_of(weight.device), weight.format, weight.rows, weight.columns, 1, gated)
    return config if config.kernel == "direct" else None


def norms(weight: Weight, gated: bool = False) -> bool:
    """Whether ``linear_of_norm`` is one kernel: one whose programs see all of the row."""
    config = _direct(weight, gated)
    return config is not None and config.splits == 1


def adds(weight: Weight) -> bool:
    """Whether ``add_linear`` is one kernel."""
    return _direct(weight, False) is not None


def linear_of_norm(
    x: Tensor, norm: RowNorm, weight: Weight, bias: Tensor | None, out: Tensor, gated: bool = False
) -> Tensor:
    """``linear`` (``linear_swiglu`` if ``gated``) of the normed row x [1, K], written to ``out`` [1, N] ([1, N/2]).

    Rounds where the norm's own module and the linear's do.
    """
    config = _direct(weight, gated)
    if config is None or config.splits > 1 or x.shape[0] != 1 or x.dtype not in _HALF:
        normed = rms_norm(x, norm.weight, norm.eps, torch.empty_like(x))
        return (linear_swiglu if gated else linear)(normed, weight, bias, out)
    from kernels.direct import launch_direct

    assert isinstance(weight, TiledWeight)
    return launch_direct(x, weight, bias, config, gated, out, norm=norm)


def add_linear(x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Add ``linear`` of the row x [1, K] to ``residual`` [1, N] in place."""
    config = _direct(weight, False)
    if config is None or x.shape[0] != 1 or x.dtype not in _HALF:
        return residual.add_(linear(x, weight, bias))
    from kernels.direct import launch_direct

    assert isinstance(weight, TiledWeight)
    return launch_direct(x, weight, bias, config, False, residual, add=True)
