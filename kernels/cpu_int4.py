"""Four-bit weights on a CPU, by torch's own product where it is faster than decoding the weight in every call.

Milliseconds on two cores of a Xeon with AVX-512 (``kernels.cpu_benchmark``), int4 group 64, bfloat16 activations:

============= ==== ========== ========== ===========
weight        rows dense bf16 decoding   torch int4
============= ==== ========== ========== ===========
2048 x 2048      1        0.9       11.1         0.3
2048 x 2048     16        0.9       11.8         2.3
2048 x 2048     64        1.2       12.2         9.4
2048 x 11008     1        6.9      102.7         1.7
2048 x 11008    16        5.6      158.5        15.1
2048 x 11008    64       11.8      171.8        74.4
============= ==== ========== ========== ===========

For float32 activations torch has no fast code: it takes ten times the dense product at one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import unpack
from kernels.weights import Int4Weight

MOST_ROWS = 64
"""Above, decoding once is faster."""

GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True)
class CpuInt4Weight:
    """A weight as ``torch._weight_int4pack_mm_for_cpu`` reads it.

    ``packed`` uint8 [N, K/2] in an order of torch's own; ``factors`` bfloat16 [K/g, N, 2]: the scale, and the zero
    point times the scale, negative, which is the one number here that is rounded where the reference rounds nothing.
    """

    rows: int
    columns: int
    group: int
    packed: Tensor
    factors: Tensor


def unsupported(weight: Int4Weight) -> str | None:
    """Why torch cannot multiply by ``weight``, or None if it can."""
    rows, columns = weight.shape
    if weight.packed.device.type != "cpu":
        return f"it is on {weight.packed.device}"
    if rows % 16 or weight.group not in GROUPS or columns % weight.group:
        return f"{rows} rows in groups of {weight.group}, wanted rows in sixteens and groups of 32, 64, 128 or 256"
    if weight.scale.dtype != torch.bfloat16:
        return f"scales in {weight.scale.dtype}, wanted torch.bfloat16"
    return None


def pack(weight: Int4Weight) -> CpuInt4Weight:
    """``weight`` in torch's order.

    Raises:
        ValueError: torch cannot read it; ``unsupported`` says why.
    """
    reason = unsupported(weight)
    if reason is not None:
        raise ValueError(
            f"torch's four-bit product cannot read {list(weight.shape)} {weight.label}: {reason}"
        )
    rows, columns = weight.shape
    codes = unpack(weight.packed, 4, columns).to(torch.int32) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scale = weight.scale.t().float()
    offset = torch.zeros_like(scale)
    if weight.zero is not None:
        offset = -unpack(weight.zero, 4, rows, dim=0).t().float() * scale
    factors = torch.stack((scale, offset), dim=-1).to(torch.bfloat16).contiguous()
    return CpuInt4Weight(rows, columns, weight.group, packed, factors)


def linear(x: Tensor, weight: CpuInt4Weight, bias: Tensor | None) -> Tensor:
    """``x W^T + bias`` for bfloat16 x [..., K]: [..., N]."""
    flat = x.reshape(-1, weight.columns).contiguous()
    out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, weight.packed, weight.group, weight.factors)
    if bias is not None:
        out += bias.to(out.dtype)
    return out.view(*x.shape[:-1], weight.rows)
