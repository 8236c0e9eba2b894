# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: SIM108, SIM300
"""The one dequantization that every Triton kernel uses: words of a ``TiledWeight`` to weights.

Integers: ``(code - zero) * scale`` in bfloat16, rounded once: bit for bit the reference's weight; for float16
activations that weight converted. NVFP4: ``code * scale`` times a power of two, exactly; the rest of that power
and the global scale are multiplied into the float32 sum. There are two implementations of the same numbers:
PTX on pairs of weights in 32-bit registers (sm_80 and newer), and plain arithmetic that the interpreter runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

INT4 = tl.constexpr(0)
NVFP4 = tl.constexpr(1)

NVFP4_REST = {"bfloat16": 2.0**8, "float16": 2.0**7}
"""What the sum has to be multiplied by: an E2M1 code's bits, read as a bfloat16 (float16), are 2**-126 (2**-14)
times its value, and a scale is raised by 2**118 (2**7), as far as the largest one goes without overflow."""


def _moved(register: str, source: str, left: int) -> str:
    """PTX: ``source`` shifted by ``left`` bits, to the right if negative."""
    return f"{'shl' if left >= 0 else 'shr'}.b32 {register}, {source}, {abs(left)};\n"


def _e2m1_pairs(exponent_bit: int, mask: str) -> str:
    """PTX of all nibbles ``seem``: s to bit 15, eem to ``exponent_bit - 1`` and up."""
    head = "{\n.reg .b32 u, v, a, b, sign;\nmov.b32 sign, 0x80008000;\n"
    head += "prmt.b32 u, $8, $9, 0x5410;\nprmt.b32 v, $8, $9, 0x7632;\n"
    body = ""
    for i in range(8):
        source, at = ("u" if i < 4 else "v"), 4 * (i % 4)
        body += _moved("a", source, 12 - at) + "and.b32 a, a, sign;\n"
        body += _moved("b", source, exponent_bit - 1 - at) + f"lop3.b32 ${i}, b, {mask}, a, 0xEA;\n"
    return head + body + "}"


def _int4_pairs() -> str:
    """PTX of all nibbles ``n``: 0x430n is 128 + n in bfloat16, exactly."""
    head = "{\n.reg .b32 u, v, a;\nprmt.b32 u, $8, $9, 0x5410;\nprmt.b32 v, $8, $9, 0x7632;\n"
    body = ""
    for i in range(8):
        body += _moved("a", "u" if i < 4 else "v", -4 * (i % 4))
        body += f"lop3.b32 ${i}, a, 0x000F000F, 0x43004300, 0xEA;\n"
    return head + body + "}"


_UNPACK_OPERANDS = tl.constexpr(",".join(["=r"] * 8 + ["r"] * 2))
_UNPACK_INT4 = tl.constexpr(_int4_pairs())
_UNPACK_NVFP4_BF16 = tl.constexpr(_e2m1_pairs(7, "0x01C001C0"))
_UNPACK_NVFP4_FP16 = tl.constexpr(_e2m1_pairs(10, "0x0E000E00"))

# Adding -0.0 makes a fused multiply-add a multiplication; sm_80 has no other on pairs of bfloat16.
_STEPS = "{\n.reg .b32 one, nil, d;\nmov.b32 one, 0x3F803F80;\nmov.b32 nil, 0x80008000;\n"
_STEPS += "fma.rn.bf16x2 d, $1, one, $2;\n"
_STEP_BF16 = tl.constexpr(_STEPS + "fma.rn.bf16x2 $0, d, $3, nil;\n}")
_STEP_FP16 = tl.constexpr(
    _STEPS
    + "fma.rn.bf16x2 d, d, $3, nil;\n.reg .b32 a, b;\nshl.b32 a, d, 16;\nand.b32 b, d, 0xFFFF0000;\n"
    + "cvt.rn.f16x2.f32 $0, b, a;\n}"
)
# The scale comes twice, once for each weight of the pair, and twice in either register.
_TIMES_BF16 = tl.constexpr("{\n.reg .b32 nil;\nmov.b32 nil, 0x80008000;\nfma.rn.bf16x2 $0, $1, $2, nil;\n}")
_TIMES_FP16 = tl.constexpr("mul.rn.f16x2 $0, $1, $2;")


@triton.jit
def _unpack(words, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """The eight nibbles of each word as 16-bit floats: 128 + n (bfloat16), or E2M1 numbers not yet raised."""
    if FORMAT == INT4:
        return tl.inline_asm_elementwise(
            _UNPACK_INT4, _UNPACK_OPERANDS, [words],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
             tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    elif DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _UNPACK_NVFP4_BF16, _UNPACK_OPERANDS, [words],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
             tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            _UNPACK_NVFP4_FP16, _UNPACK_OPERANDS, [words],
            (tl.float16, tl.float16, tl.float16, tl.float16,
             tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def _plain(words, scale, offset, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Weights of nibble ``i`` by plain arithmetic in float32; ``scale`` and ``offset`` are float32."""
    nibble = (words >> (4 * i)) & 15
    if FORMAT == INT4:
        exact = (nibble.to(tl.float32) + (offset + 128.0)) * scale
        # Rounded to bfloat16, ties to even, by hand: the interpreter's conversion cuts off.
        bits = exact.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True).to(DTYPE)
    else:
        code = nibble & 7
        magnitude = ((code << 22) + (126 << 23)).to(tl.float32, bitcast=True)
        magnitude = tl.where(code < 2, code.to(tl.float32) * 0.5, magnitude)
        lowered = scale * (2.0**-126 if DTYPE == tl.bfloat16 else 2.0**-14)
        return (tl.where(nibble > 7, -magnitude, magnitude) * lowered).to(DTYPE)


@triton.jit
def _scaled(value, scale, offset, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Pairs of unpacked nibbles times their scale, for integers less their zero first.

    ``scale`` is a 16-bit float for integers, and for NVFP4 an int32 that holds it twice.
    """
    if FORMAT == INT4:
        if DTYPE == tl.bfloat16:
            return tl.inline_asm_elementwise(
                _STEP_BF16, "=r,r,r,r", [value, offset, scale], tl.bfloat16, is_pure=True, pack=2
            )
        else:
            return tl.inline_asm_elementwise(
                _STEP_FP16, "=r,r,r,r", [value, offset, scale], tl.float16, is_pure=True, pack=2
            )
    elif DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _TIMES_BF16, "=r,r,r,r", [value, scale], tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            _TIMES_FP16, "=r,r,r,r", [value, scale], tl.float16, is_pure=True, pack=2
        )


@triton.jit
def read_scale(words, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Scale and offset of nibble ``i`` from its group's word: 16-bit floats.

    Integers: ``words`` is the group's word. NVFP4: the word with the scales of nibbles 0 to 3 or 4 to 7.
    """
    if FORMAT == INT4:
        scale = (words & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        offset = ((words >> 16) & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        byte = (words >> (8 * (i % 4))) & 0xFF
        if DTYPE == tl.bfloat16:
            # Exponent e stands for 2**(e - 10); raised by 2**118 its field is e + 108 + 127.
            scale = ((byte << 4) + (235 << 7)).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        else:
            scale = ((byte << 7) + (12 << 10)).to(tl.uint16).to(tl.float16, bitcast=True)
        offset = scale
    return scale, offset


@triton.jit
def decode(
    words, s0, s1, s2, s3, s4, s5, s6, s7,
    FORMAT: tl.constexpr, DTYPE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Weights of the eight nibbles of ``words``.

    Args:
        words: int32 tile.
        s0 .. s7: the word that ``read_scale`` takes for each nibble, in a shape that broadcasts to the tile's.
        FORMAT: INT4 or NVFP4.
        DTYPE: tl.bfloat16 or tl.float16.
        FAST: PTX on pairs; otherwise plain arithmetic.

    Returns:
        eight tiles in ``DTYPE``.
    """
    if FAST:
        n0, n1, n2, n3, n4, n5, n6, n7 = _unpack(words, FORMAT, DTYPE)
    else:
        n0, n1, n2, n3, n4, n5, n6, n7 = words, words, words, words, words, words, words, words
    return (
        _one(n0, s0, 0, FORMAT, DTYPE, FAST), _one(n1, s1, 1, FORMAT, DTYPE, FAST),
        _one(n2, s2, 2, FORMAT, DTYPE, FAST), _one(n3, s3, 3, FORMAT, DTYPE, FAST),
        _one(n4, s4, 4, FORMAT, DTYPE, FAST), _one(n5, s5, 5, FORMAT, DTYPE, FAST),
        _one(n6, s6, 6, FORMAT, DTYPE, FAST), _one(n7, s7, 7, FORMAT, DTYPE, FAST),
    )  # fmt: skip


@triton.jit
def _one(nibble, word, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr, FAST: tl.constexpr):
    """The weights of nibble ``i``."""
    if FAST:
        if FORMAT == NVFP4:
            # The bits of ``read_scale``, in both halves of a register by one multiplication.
            byte = (word >> (8 * (i % 4))) & 0xFF
            if DTYPE == tl.bfloat16:
                scale = byte * 0x00100010 + 0x75807580
            else:
                scale = byte * 0x00800080 + 0x30003000
            scale, _ = tl.broadcast(scale, nibble)
            return _scaled(nibble, scale, scale, FORMAT, DTYPE)
        else:
            scale, offset = read_scale(word, i, FORMAT, DTYPE)
            scale, _ = tl.broadcast(scale, nibble)
            offset, _ = tl.broadcast(offset, nibble)
            return _scaled(nibble, scale, offset, FORMAT, DTYPE)
    else:
        scale, offset = read_scale(word, i, FORMAT, DTYPE)
        return _plain(nibble, scale.to(tl.float32), offset.to(tl.float32), i, FORMAT, DTYPE)
