from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packing import pack, packed_words, unpack


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(2, 8), rows=st.integers(1, 70), columns=st.integers(1, 140), seed=st.integers(0, 1 << 16)
)
def test_codes_of_any_width_survive_packing_along_either_dimension(
    bits: int, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, columns), generator=generator).to(torch.int8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, packed_words(columns, bits))
    assert torch.equal(unpack(words, bits, columns), codes)
    assert torch.equal(unpack(pack(codes, bits, dim=0), bits, rows, dim=0), codes)


def test_four_bit_codes_lie_lowest_nibble_first() -> None:
    codes = torch.tensor([[-8, -7, -6, -5, -4, -3, -2, 7]], dtype=torch.int8)
    assert pack(codes, 4).item() & 0xFFFFFFFF == 0xF6543210


def test_the_most_negative_and_most_positive_words_are_kept() -> None:
    for value in (-8, 7):
        codes = torch.full((2, 8), value, dtype=torch.int8)
        assert torch.equal(unpack(pack(codes, 4), 4, 8), codes)


@pytest.mark.parametrize("bits", [1, 9])
def test_a_width_that_cannot_be_packed_is_named(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}"):
        pack(torch.zeros(1, 8, dtype=torch.int8), bits)
