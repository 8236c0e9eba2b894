"""Random quantized weights and the float64 result: what the tests check and the benchmark times."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import pack
from kernels.weights import Int4Weight, Nvfp4Weight, StoredWeight


def int4(rows: int, columns: int, group: int, symmetric: bool, seed: int) -> Int4Weight:
    """Codes and zeros over their whole range, scales of 0.003 to 0.023."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator).to(torch.int8)
    scale = (torch.rand(rows, columns // group, generator=generator) * 0.02 + 0.003).to(torch.bfloat16)
    zeros = torch.randint(-8, 8, (rows, columns // group), generator=generator).to(torch.int8)
    return Int4Weight(pack(codes, 4), scale, None if symmetric else pack(zeros, 4, dim=0))


def nvfp4(rows: int, columns: int, seed: int, global_scale: float = 173.0) -> Nvfp4Weight:
    """All codes, and scales that include zero, the subnormal ones and the largest."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=generator).to(torch.uint8)
    scale = torch.randint(0, 0x7F, (rows, columns // 16), generator=generator).to(torch.uint8)
    return Nvfp4Weight(packed, scale.view(torch.float8_e4m3fn), ((rows, global_scale),))


def moved(weight: StoredWeight, device: torch.device | str) -> StoredWeight:
    """``weight`` on ``device``."""
    if isinstance(weight, Nvfp4Weight):
        return Nvfp4Weight(weight.packed.to(device), weight.scale.to(device), weight.global_scales)
    zero = None if weight.zero is None else weight.zero.to(device)
    return Int4Weight(weight.packed.to(device), weight.scale.to(device), zero)


def exact(x: Tensor, weight: StoredWeight, bias: Tensor | None, gated: bool = False) -> Tensor:
    """``x W^T + bias``, gated if asked, in float64."""
    out = x.double() @ weight.dense().double().t()
    if bias is not None:
        out += bias.double()
    if not gated:
        return out
    gate, up = out.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of ``wanted``; what is not a number stays so."""
    return float((found.double() - wanted).norm() / wanted.norm())
