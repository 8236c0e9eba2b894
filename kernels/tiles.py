"""The layout that the kernels read: a stored weight reordered once at load.

Columns are cut into blocks of 128, the last one padded with zero codes. A block of one row is 16 words of 32
bits and the blocks lie as [ceil(K/128), N, 16]: what a kernel reads of neighbouring rows at one step is one
contiguous piece of memory. Nibble ``i`` of word ``j`` (lowest first) is column ``16 * i + j`` of its block, so
that nibble ``i`` of all words belongs to one group whatever the group (16 to 128 columns), neighbouring words
are neighbouring columns, and unpacking whole words puts a block's columns in order. An E2M1 code's sign and the
rest lie apart within their half of the word, as ``E2M1_SIGN`` and ``E2M1_MAGNITUDE`` say: few shifts and masks
then make 16-bit floats of them.

What a kernel needs beside the codes lies as words too, because words can be copied ahead asynchronously:
int32 [K/g, N] of ``-(128 + zero) << 16 | scale`` (both bfloat16) for integers, and int32 [ceil(K/64), N] of four
scales (lowest byte first) for NVFP4. There a scale is re-coded without loss: E4M3's sign bit, which no scale
uses, becomes a fifth bit of exponent, so that subnormal scales become normal: ``value = (8 + m) * 2**(e - 13)``
for the byte ``e << 3 | m``. A group whose scale is zero gets zero codes instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import nvfp4
from kernels.packing import unpack
from kernels.weights import Int4Weight, Nvfp4Weight, StoredWeight

BLOCK = 128
"""Columns of a block."""

TICKETS = 4096
"""Tiles of a result that a kernel which splits K can have."""

E2M1_SIGN = (15, 12, 14, 13)
"""Bit of the sign of NVFP4's nibbles 0 to 3 in a word's lower half; nibbles 4 to 7 lie so in the upper one."""

E2M1_MAGNITUDE = (6, 3, 0, 9)
"""Lowest of the three bits of those nibbles' exponent and mantissa."""

GROUPS = (32, 64, 128)
"""Groups of four-bit integers that the kernels decode."""


@dataclass(frozen=True)
class TiledWeight:
    """A weight [``rows``, ``columns``] as the kernels read it.

    ``codes`` int32 [ceil(K/128), N, 16]; ``scales`` int32 [K/g, N] or, for NVFP4, [ceil(K/64), N];
    ``factors`` float32 [N], 1 / global scale of each row, or None; ``parts``: (rows, 1 / global scale) of each
    part of a fused NVFP4 weight.
    """

    rows: int
    columns: int
    group: int
    label: str
    codes: Tensor
    scales: Tensor
    factors: Tensor | None
    parts: tuple[tuple[int, float], ...]
    tickets: Tensor
    """int32 [4096] zeros, which the kernels that split K draw from and put back: one call at a time."""

    @property
    def format(self) -> str:
        """``int4-g<group>`` or ``nvfp4``: what a kernel's speed depends on."""
        return "nvfp4" if self.factors is not None else f"int4-g{self.group}"

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.factors) if t is not None)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.codes.device

    def dense(self) -> Tensor:
        """The weight [rows, columns] that runs: bfloat16 for integers, float32 for NVFP4; pure torch."""
        nibbles = torch.stack([_nibble(self.codes, i, self.factors is not None) for i in range(8)], 2)
        codes = nibbles.transpose(0, 1).reshape(self.rows, -1)[:, : self.columns]
        if self.factors is None:
            words = self.scales.t().unsqueeze(-1)
            offset = (words >> 16).to(torch.int16).view(torch.bfloat16).float()
            scale = (words << 16).view(torch.float32)
            groups = codes.reshape(self.rows, -1, self.group).float()
            return ((groups + (offset + 128.0)) * scale).flatten(1).to(torch.bfloat16)
        values = torch.tensor([*nvfp4.MAGNITUDES, *(-m for m in nvfp4.MAGNITUDES)], device=self.device)
        scales = self.scales.t().contiguous().view(torch.uint8)[:, : self.columns // nvfp4.GROUP].float()
        exponent = torch.floor(scales / 8)
        scale = torch.ldexp(8 + scales - 8 * exponent, exponent - 13).unsqueeze(-1)
        groups = values[codes.int()].reshape(self.rows, -1, nvfp4.GROUP)
        return (groups * scale).flatten(1) * self.factors.unsqueeze(1)


def unsupported(weight: StoredWeight) -> str | None:
    """Why the kernels cannot read ``weight``, or None if they can."""
    columns = weight.shape[1]
    if isinstance(weight, Nvfp4Weight):
        if columns % nvfp4.GROUP:
            return f"{columns} columns are no multiple of {nvfp4.GROUP}"
        # As bytes: 0x7F is E4M3's NaN and everything above carries a sign.
        if (weight.scale.view(torch.uint8) >= 0x7F).any():
            return "a scale is negative or not a number"
        return None
    if weight.group not in GROUPS or columns % weight.group:
        return f"groups of {weight.group} columns, wanted 32, 64 or 128"
    if weight.scale.dtype != torch.bfloat16:
        return f"scales in {weight.scale.dtype}, wanted torch.bfloat16"
    return None


def _nibble(words: Tensor, i: int, floats: bool) -> Tensor:
    """Nibble ``i`` of each word; ``floats``: it is an E2M1 code."""
    if not floats:
        return words >> 4 * i & 0xF
    half = words >> 16 * (i // 4)
    return (half >> E2M1_SIGN[i % 4] & 1) << 3 | half >> E2M1_MAGNITUDE[i % 4] & 7


def _placed(nibble: Tensor, i: int, floats: bool) -> Tensor:
    """int32 words that hold nothing but ``nibble`` as their nibble ``i``."""
    nibble = nibble.to(torch.int32)
    if not floats:
        return nibble << 4 * i
    return (nibble >> 3 << E2M1_SIGN[i % 4] | (nibble & 7) << E2M1_MAGNITUDE[i % 4]) << 16 * (i // 4)


def _interleave(nibbles: Tensor, floats: bool) -> Tensor:
    """Words int32 [ceil(K/128), N, 16] of ``nibbles`` uint8 [N, K]; ``floats``: these are E2M1 codes."""
    rows, columns = nibbles.shape
    blocks = -(-columns // BLOCK)
    padded = torch.nn.functional.pad(nibbles, (0, blocks * BLOCK - columns))
    runs = padded.reshape(rows, blocks, 8, 16).transpose(0, 1)
    words = torch.zeros(blocks, rows, 16, dtype=torch.int32, device=nibbles.device)
    for i in range(8):
        words |= _placed(runs[:, :, i], i, floats)
    return words


def _recode(scale: Tensor) -> Tensor:
    """Non-negative E4M3 bytes uint8 as bytes of five exponent and three mantissa bits; zero stays zero."""
    subnormal = scale < 8
    # m * 2**-9 for m of 1 to 7: shift until the leading one is bit 3.
    shift = (scale < 2).to(torch.uint8) + (scale < 4) + 1
    normalised = (4 - shift << 3) | (scale << shift & 7)
    recoded = torch.where(subnormal, normalised, scale + (3 << 3))
    return torch.where(scale == 0, 0, recoded)


def tile(weight: StoredWeight) -> TiledWeight:
    """Reorder ``weight`` for the kernels; the result takes 2 to 12 % more bytes for integers, none for NVFP4.

    Raises:
        ValueError: the kernels cannot read it; ``unsupported`` says why.
    """
    reason = unsupported(weight)
    if reason is not None:
        raise ValueError(f"the kernels cannot read a weight {list(weight.shape)} {weight.label}: {reason}")
    rows, columns = weight.shape
    data = weight.packed.contiguous().view(torch.uint8)
    nibbles = torch.stack((data & 0xF, data >> 4), dim=-1).flatten(-2)
    tickets = torch.zeros(TICKETS, dtype=torch.int32, device=data.device)
    if isinstance(weight, Int4Weight):
        scale = weight.scale.view(torch.int16).to(torch.int32) & 0xFFFF
        offset = torch.full_like(weight.scale, -136.0)
        if weight.zero is not None:
            offset = (-136.0 - unpack(weight.zero, 4, rows, dim=0).float()).to(torch.bfloat16)
        words = offset.view(torch.int16).to(torch.int32) << 16 | scale
        scales = words.t().contiguous()
        codes = _interleave(nibbles, False)
        _settle(codes)
        return TiledWeight(rows, columns, weight.group, weight.label, codes, scales, None, (), tickets)
    scale = weight.scale.view(torch.uint8)
    empty = (scale == 0).repeat_interleave(nvfp4.GROUP, dim=1)
    codes = _interleave(nibbles.masked_fill(empty, 0), True)
    padded = torch.nn.functional.pad(_recode(scale), (0, -scale.shape[1] % 4))
    scales = padded.contiguous().view(torch.int32).t().contiguous()
    factors = 1.0 / weight.divisors().flatten()
    parts = tuple((count, 1.0 / value) for count, value in weight.global_scales)
    _settle(codes)
    return TiledWeight(rows, columns, weight.group, weight.label, codes, scales, factors, parts, tickets)


def _settle(codes: Tensor) -> None:
    """Wait for the device: a kernel that starts before its predecessor has ended reads its weight at once."""
    if codes.is_cuda:
        torch.cuda.current_stream(codes.device).synchronize()
