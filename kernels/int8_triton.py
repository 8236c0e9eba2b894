# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The kernel of ``kernels.int8``: a row of activations times stored eight-bit words; needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# A word holds four codes c as bytes c + 128. Of two words, byte i of either goes to a half of a register, where
# the low seven bits become the bfloat16 128 + low; less 128 or 256, by the eighth bit, that is the code. Both steps
# are exact, and the last one rounds once, as the reference does.
_PAIR = """
prmt.b32 t, $4, $5, {select};
lop3.b32 v, t, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 c, t, 0x00800080, 0xC380C380, 0x6A;
fma.rn.bf16x2 v, v, one, c;
fma.rn.bf16x2 ${i}, v, $6, nil;
"""
_DECODE = tl.constexpr(
    "{\n.reg .b32 t, v, c, one, nil;\nmov.b32 one, 0x3F803F80;\nmov.b32 nil, 0x80008000;"
    + "".join(
        _PAIR.format(i=i, select=select) for i, select in enumerate(("0x4400", "0x5511", "0x6622", "0x7733"))
    )
    + "}"
)


@triton.jit
def _plain(words, scale, i: tl.constexpr):
    """Weights of byte ``i`` in float32, rounded to bfloat16 by hand: the interpreter's conversion cuts off."""
    code = ((words >> (8 * i)) & 0xFF) - 128
    bits = (code.to(tl.float32) * scale.to(tl.float32)).to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _gemv(
    x_ptr,
    words_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    N,
    WORDS,
    x_stride,
    out_stride,
    GROUP: tl.constexpr,
    BIAS: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out[m, N] = x[m] W^T; grid (M, tiles of N): rows of x that share weights run side by side.

    A row of the weight is WORDS words; GROUP is that of a scale, in words.
    """
    m = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = tl.minimum(rows, N - 1).to(tl.int64)[:, None]
    total = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    for start in range(0, WORDS, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)
        inside = word < WORDS
        words = tl.load(words_ptr + kept * WORDS + word[None, :], mask=inside[None, :], other=0)
        scale = tl.load(
            scale_ptr + kept * (WORDS // GROUP) + (word // GROUP)[None, :], mask=inside[None, :], other=0.0
        )
        if FAST:
            w0, w1, w2, w3 = tl.inline_asm_elementwise(
                _DECODE, "=r,=r,=r,=r,r,r,r", [words, scale],
                (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        else:
            w0, w1 = _plain(words, scale, 0), _plain(words, scale, 1)
            w2, w3 = _plain(words, scale, 2), _plain(words, scale, 3)
        x = x_ptr + m * x_stride + 4 * word
        x0 = tl.load(x, mask=inside, other=0.0).to(tl.float32)[None, :]
        x1 = tl.load(x + 1, mask=inside, other=0.0).to(tl.float32)[None, :]
        x2 = tl.load(x + 2, mask=inside, other=0.0).to(tl.float32)[None, :]
        x3 = tl.load(x + 3, mask=inside, other=0.0).to(tl.float32)[None, :]
        total += w0.to(tl.float32) * x0 + w1.to(tl.float32) * x1
        total += w2.to(tl.float32) * x2 + w3.to(tl.float32) * x3
    result = tl.sum(total, 1)
    if BIAS:
        result += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + m * out_stride + rows, result.to(out_ptr.dtype.element_ty), mask=rows < N)


def gemv(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``x W^T + bias`` of rows x [M, K], each in programs of its own, written to ``out`` [M, N]."""
    rows, words = packed.shape
    # Few rows a program keep many programs on the device; the interpreter's time goes by programs.
    block_n = 4 if x.is_cuda else 64
    _gemv[(x.shape[0], triton.cdiv(rows, block_n))](
        x, packed, scale, x if bias is None else bias, out, rows, words, x.stride(0), out.stride(0),
        GROUP=words // scale.shape[1], BIAS=bias is not None, FAST=x.is_cuda, BLOCK_N=block_n,
        BLOCK_W=min(512, triton.next_power_of_2(words)), num_warps=4,
    )  # fmt: skip
    return out
