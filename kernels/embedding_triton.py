# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The kernel of ``kernels.embedding``; needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather(
    ids_ptr, words_ptr, scale_ptr, out_ptr, WORDS, GROUP, BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Row ``ids[n]`` to row n of out; grid (ids, blocks of columns). GROUP is that of a scale, in columns."""
    FIELDS: tl.constexpr = 32 // BITS
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(ids_ptr + row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WORDS * FIELDS
    words = tl.load(words_ptr + source * WORDS + column // FIELDS, mask=inside, other=0)
    code = ((words >> (column % FIELDS * BITS)) & ((1 << BITS) - 1)) - (1 << (BITS - 1))
    groups = WORDS * FIELDS // GROUP
    scale = tl.load(scale_ptr + source * groups + column // GROUP, mask=inside, other=0.0).to(tl.float32)
    bits = (code.to(tl.float32) * scale).to(tl.int32, bitcast=True)
    # Rounded to bfloat16 by hand, as the reference does: the interpreter's conversion cuts off.
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    value = bits.to(tl.float32, bitcast=True).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WORDS * FIELDS + column, value, mask=inside)


def gather(ids: Tensor, packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """See ``kernels.embedding.gather``."""
    words = packed.shape[1]
    columns = words * 32 // bits
    out = torch.empty(ids.numel(), columns, dtype=dtype, device=packed.device)
    block = 1024
    _gather[(ids.numel(), triton.cdiv(columns, block))](
        ids, packed, scale, out, words, columns // scale.shape[1], BITS=bits, BLOCK=block, num_warps=4
    )
    return out
