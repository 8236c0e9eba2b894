"""Dense packing of small integers into 32-bit words: the ``pack-quantized`` layout of compressed-tensors.

A signed code ``q`` of ``bits`` bits is stored as ``q + 2**(bits - 1)``. Element ``i`` of a row occupies the
bits from ``i * bits`` on of the row's bit string, lowest bit first: 32 elements fill exactly ``bits`` words
and an element may straddle two of them; a row that ends inside a word is padded with zero bits. Words are
little endian.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8


def packed_words(elements: int, bits: int) -> int:
    """How many 32-bit words ``elements`` codes of ``bits`` bits take."""
    return -(-elements * bits // 32)


def _layout(bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Word and bit offset inside it of each of the 32 elements that fill ``bits`` words."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits is {bits}, but only {MIN_BITS} to {MAX_BITS} can be packed")
    start = torch.arange(32, device=device) * bits
    return start // 32, start % 32


def pack(codes: Tensor, bits: int, dim: int = 1) -> Tensor:
    """Pack int8 ``codes`` [N, K], each in ``-2**(bits-1) .. 2**(bits-1)-1``, along ``dim`` into int32 words.

    Returns:
        int32 [N, ceil(K*bits/32)] for ``dim=1``, [ceil(N*bits/32), K] for ``dim=0``.
    """
    if dim == 0:
        return pack(codes.t(), bits).t().contiguous()
    word, offset = _layout(bits, codes.device)
    rows, columns = codes.shape
    blocks = -(-columns // 32)
    values = codes.to(torch.int64) + (1 << (bits - 1))
    values = torch.nn.functional.pad(values, (0, blocks * 32 - columns)).reshape(rows * blocks, 32)
    # The spare last word takes the (zero) high half of the elements that end in the last real one.
    words = torch.zeros(rows * blocks, bits + 1, dtype=torch.int64, device=codes.device)
    shifted = values << offset
    words.scatter_add_(1, word.expand_as(values), shifted & 0xFFFFFFFF)
    words.scatter_add_(1, (word + 1).expand_as(values), shifted >> 32)
    words = words[:, :bits].reshape(rows, blocks * bits)[:, : packed_words(columns, bits)]
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


def unpack(words: Tensor, bits: int, count: int, dim: int = 1) -> Tensor:
    """Undo ``pack``: int32 ``words`` to int8 codes, ``count`` of them along ``dim``."""
    if dim == 0:
        return unpack(words.t(), bits, count).t()
    middle = 1 << (bits - 1)
    if bits == 8:
        return (words.contiguous().view(torch.uint8)[:, :count] ^ 0x80).view(torch.int8)
    if bits == 4:
        # Spread each byte over 16 bits, low nibble in the low byte: twice as fast as interleaving two halves.
        wide = words.contiguous().view(torch.uint8).to(torch.int16)
        return ((wide | wide << 4) & 0x0F0F).view(torch.int8)[:, :count] - middle
    word, offset = _layout(bits, words.device)
    rows, found = words.shape
    blocks = -(-found // bits)
    # A word of zeros behind the last lets every element read a pair of words.
    padded = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, blocks * bits - found))
    padded = torch.nn.functional.pad(padded.reshape(rows * blocks, bits), (0, 1))
    values = (padded[:, word] | padded[:, word + 1] << 32) >> offset & ((1 << bits) - 1)
    return (values.reshape(rows, blocks * 32)[:, :count] - middle).to(torch.int8)
