# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: SIM300
"""The one dequantization that every Triton kernel uses: words of a ``TiledWeight`` to weights.

Integers: ``(code - zero) * scale`` in bfloat16, rounded once: bit for bit the reference's weight; for float16
activations that weight converted. NVFP4: ``code * scale`` times a power of two, exactly; the rest of that power
and the global scale are multiplied into the float32 sum. There are two implementations of the same numbers:
PTX on pairs of weights in 32-bit registers (sm_80 and newer), and plain arithmetic that the interpreter runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.tiles import E2M1_MAGNITUDE, E2M1_SIGN

INT4 = tl.constexpr(0)
NVFP4 = tl.constexpr(1)

NVFP4_REST = {"bfloat16": 2.0**8, "float16": 2.0**7}
"""What the sum has to be multiplied by: an E2M1 code's bits, read as a bfloat16 (float16), are 2**-126 (2**-14)
times its value, and a scale is raised by 2**118 (2**7), as far as the largest one goes without overflow."""


def _twice(half: int) -> str:
    """A 16-bit constant in both halves of a register."""
    return f"0x{half << 16 | half:08X}"


def _moved(register: str, source: str, left: int) -> str:
    """PTX: ``source`` shifted by ``left`` bits, to the right if negative."""
    return f"{'shl' if left >= 0 else 'shr'}.b32 {register}, {source}, {abs(left)};\n"


def _unpacked(half: int, body: str) -> str:
    """PTX of four results from nibbles 0 to 3 (``half`` 0) or 4 to 7 of two words: in ``u``, one word in each half."""
    select = ("0x5410", "0x7632")[half]
    return "{\n.reg .b32 u, a, b;\n" + f"prmt.b32 u, $4, $5, {select};\n" + body + "}"


def _e2m1_pairs(half: int, exponent_bit: int) -> str:
    """PTX of codes ``seem``: s to bit 15, eem to ``exponent_bit - 1`` and up; in two operations if both lie
    equally far off.
    """
    body = ""
    magnitude = 7 << exponent_bit - 1
    for i in range(4):
        left, sign_left = exponent_bit - 1 - E2M1_MAGNITUDE[i], 15 - E2M1_SIGN[i]
        body += _moved("b", "u", left)
        if left == sign_left:
            body += f"and.b32 ${i}, b, {_twice(magnitude | 0x8000)};\n"
        else:
            body += f"and.b32 b, b, {_twice(magnitude)};\n" + _moved("a", "u", sign_left)
            body += f"lop3.b32 ${i}, a, 0x80008000, b, 0xEA;\n"
    return _unpacked(half, body)


def _int4_pairs(half: int) -> str:
    """PTX of nibbles ``n``: 0x430n is 128 + n in bfloat16, exactly."""
    body = ""
    for i in range(4):
        body += _moved("a", "u", -4 * i)
        body += f"lop3.b32 ${i}, a, 0x000F000F, 0x43004300, 0xEA;\n"
    return _unpacked(half, body)


_UNPACK_OPERANDS = tl.constexpr(",".join(["=r"] * 4 + ["r"] * 2))
_UNPACK_INT4 = tl.constexpr(tuple(_int4_pairs(half) for half in range(2)))
_UNPACK_NVFP4_BF16 = tl.constexpr(tuple(_e2m1_pairs(half, 7) for half in range(2)))
_UNPACK_NVFP4_FP16 = tl.constexpr(tuple(_e2m1_pairs(half, 10) for half in range(2)))

_SIGN = tl.constexpr(E2M1_SIGN)
_MAGNITUDE = tl.constexpr(E2M1_MAGNITUDE)

# Adding -0.0 makes a fused multiply-add a multiplication; sm_80 has no other on pairs of bfloat16. Scale and
# offset come twice in their registers, and a register for each weight of the pair: the second of them is not read.
_STEPS = "{\n.reg .b32 one, nil, d;\nmov.b32 one, 0x3F803F80;\nmov.b32 nil, 0x80008000;\n"
_STEPS += "fma.rn.bf16x2 d, $1, one, $2;\n"
_STEP_BF16 = tl.constexpr(_STEPS + "fma.rn.bf16x2 $0, d, $4, nil;\n}")
_STEP_FP16 = tl.constexpr(
    _STEPS
    + "fma.rn.bf16x2 d, d, $4, nil;\n.reg .b32 a, b;\nshl.b32 a, d, 16;\nand.b32 b, d, 0xFFFF0000;\n"
    + "cvt.rn.f16x2.f32 $0, b, a;\n}"
)
_TIMES_BF16 = tl.constexpr("{\n.reg .b32 nil;\nmov.b32 nil, 0x80008000;\nfma.rn.bf16x2 $0, $1, $2, nil;\n}")
_TIMES_FP16 = tl.constexpr("mul.rn.f16x2 $0, $1, $2;")
# Moved so, and not by ``prmt``, the compiler makes them halves that the arithmetic selects, at no cost.
_HALVES = "{\n.reg .b16 l, h;\nmov.b32 {l, h}, $1;\nmov.b32 $0, "
_LOW_TWICE = tl.constexpr(_HALVES + "{l, l};\n}")
_HIGH_TWICE = tl.constexpr(_HALVES + "{h, h};\n}")


def _scale_pairs(multiplier: str, addend: str) -> tl.constexpr:
    """PTX for bytes 0 and 2, and 1 and 3, of a word: one into each half, and its bits to where the float has them."""
    head = "{\n.reg .b32 t;\nprmt.b32 t, $1, 0, "
    tail = f";\nmad.lo.u32 $0, t, {multiplier}, {addend};\n}}"
    return tl.constexpr((head + "0x4240" + tail, head + "0x4341" + tail))


# Exponent e stands for 2**(e - 10); raised by 2**118 the field of a bfloat16 is e + 108 + 127; by 2**7, of a
# float16, e + 12.
_SCALES_BF16 = _scale_pairs("16", _twice(235 << 7))
_SCALES_FP16 = _scale_pairs("128", _twice(12 << 10))


@triton.jit
def _unpack(words, HALF: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Four nibbles of each word as 16-bit floats: 128 + n (bfloat16), or E2M1 numbers not yet raised."""
    if FORMAT == INT4:
        return tl.inline_asm_elementwise(
            _UNPACK_INT4[HALF], _UNPACK_OPERANDS, [words],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    elif DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _UNPACK_NVFP4_BF16[HALF], _UNPACK_OPERANDS, [words],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            _UNPACK_NVFP4_FP16[HALF], _UNPACK_OPERANDS, [words],
            (tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def _plain(words, scale, offset, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Weights of nibble ``i`` by plain arithmetic in float32; ``scale`` and ``offset`` are float32."""
    if FORMAT == INT4:
        nibble = (words >> (4 * i)) & 15
        exact = (nibble.to(tl.float32) + (offset + 128.0)) * scale
        # Rounded to bfloat16, ties to even, by hand: the interpreter's conversion cuts off.
        bits = exact.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True).to(DTYPE)
    else:
        code = (words >> (16 * (i // 4) + _MAGNITUDE[i % 4])) & 7
        negative = (words >> (16 * (i // 4) + _SIGN[i % 4])) & 1
        magnitude = ((code << 22) + (126 << 23)).to(tl.float32, bitcast=True)
        magnitude = tl.where(code < 2, code.to(tl.float32) * 0.5, magnitude)
        lowered = scale * (2.0**-126 if DTYPE == tl.bfloat16 else 2.0**-14)
        return (tl.where(negative == 1, -magnitude, magnitude) * lowered).to(DTYPE)


@triton.jit
def _scaled(value, word, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Pairs of unpacked nibbles times their scale, for integers less their zero first, by PTX."""
    if FORMAT == INT4:
        scale = tl.inline_asm_elementwise(_LOW_TWICE, "=r,r", [word], tl.int32, is_pure=True, pack=1)
        offset = tl.inline_asm_elementwise(_HIGH_TWICE, "=r,r", [word], tl.int32, is_pure=True, pack=1)
        scale, _ = tl.broadcast(scale, value)
        offset, _ = tl.broadcast(offset, value)
        if DTYPE == tl.bfloat16:
            return tl.inline_asm_elementwise(
                _STEP_BF16, "=r,r,r,r,r,r", [value, offset, scale], tl.bfloat16, is_pure=True, pack=2
            )
        else:
            return tl.inline_asm_elementwise(
                _STEP_FP16, "=r,r,r,r,r,r", [value, offset, scale], tl.float16, is_pure=True, pack=2
            )
    else:
        pairs: tl.constexpr = _SCALES_BF16 if DTYPE == tl.bfloat16 else _SCALES_FP16
        pair = tl.inline_asm_elementwise(pairs[i % 2], "=r,r", [word], tl.int32, is_pure=True, pack=1)
        half: tl.constexpr = _LOW_TWICE if i % 4 < 2 else _HIGH_TWICE
        scale = tl.inline_asm_elementwise(half, "=r,r", [pair], tl.int32, is_pure=True, pack=1)
        scale, _ = tl.broadcast(scale, value)
        if DTYPE == tl.bfloat16:
            return tl.inline_asm_elementwise(
                _TIMES_BF16, "=r,r,r,r", [value, scale], tl.bfloat16, is_pure=True, pack=2
            )
        else:
            return tl.inline_asm_elementwise(
                _TIMES_FP16, "=r,r,r,r", [value, scale], tl.float16, is_pure=True, pack=2
            )


@triton.jit
def _read_scale(words, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Scale and offset of nibble ``i`` from its group's word, float32, by plain arithmetic."""
    if FORMAT == INT4:
        scale = (words << 16).to(tl.float32, bitcast=True)
        offset = (words & -65536).to(tl.float32, bitcast=True)
    else:
        byte = (words >> (8 * (i % 4))) & 0xFF
        raised: tl.constexpr = 235 if DTYPE == tl.bfloat16 else 12 + 127 - 15
        scale = ((byte << 20) + (raised << 23)).to(tl.float32, bitcast=True)
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
        s0 .. s7: for each nibble the word with its scale: its group's for integers; for NVFP4 the
            one with the scales of nibbles 0 to 3 or 4 to 7. In a shape that broadcasts to the tile's.
        FORMAT: INT4 or NVFP4.
        DTYPE: tl.bfloat16 or tl.float16.
        FAST: PTX on pairs; otherwise plain arithmetic.

    Returns:
        eight tiles in ``DTYPE``.
    """
    n0, n1, n2, n3 = decode_half(words, s0, s1, s2, s3, 0, FORMAT, DTYPE, FAST)
    n4, n5, n6, n7 = decode_half(words, s4, s5, s6, s7, 1, FORMAT, DTYPE, FAST)
    return n0, n1, n2, n3, n4, n5, n6, n7


@triton.jit
def decode_half(
    words, s0, s1, s2, s3,
    HALF: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Weights of nibbles 0 to 3 (HALF 0) or 4 to 7 (1) of ``words``, with the words of their scales; as ``decode``."""
    if FAST:
        n0, n1, n2, n3 = _unpack(words, HALF, FORMAT, DTYPE)
    else:
        n0, n1, n2, n3 = words, words, words, words
    return (
        _one(n0, s0, 4 * HALF, FORMAT, DTYPE, FAST), _one(n1, s1, 4 * HALF + 1, FORMAT, DTYPE, FAST),
        _one(n2, s2, 4 * HALF + 2, FORMAT, DTYPE, FAST), _one(n3, s3, 4 * HALF + 3, FORMAT, DTYPE, FAST),
    )  # fmt: skip


@triton.jit
def _one(nibble, word, i: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr, FAST: tl.constexpr):
    """The weights of nibble ``i``."""
    if FAST:
        return _scaled(nibble, word, i, FORMAT, DTYPE)
    else:
        scale, offset = _read_scale(word, i, FORMAT, DTYPE)
        return _plain(nibble, scale, offset, i, FORMAT, DTYPE)
