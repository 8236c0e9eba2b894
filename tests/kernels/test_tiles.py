from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.nvfp4 import MAGNITUDES, dequantize_nvfp4
from kernels.samples import int4, nvfp4
from kernels.tiles import tile, unsupported
from kernels.weights import concatenate_int4, concatenate_nvfp4


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [1, 13, 24])
def test_a_tiled_weight_is_bit_for_bit_the_stored_one(group: int, symmetric: bool, rows: int) -> None:
    weight = int4(rows, 384, group, symmetric, seed=rows)
    assert torch.equal(tile(weight).dense(), weight.dense())


@pytest.mark.parametrize("columns", [96, 160, 256])
def test_columns_that_fill_no_whole_block_are_kept(columns: int) -> None:
    weight = int4(5, columns, 32, False, seed=columns)
    assert torch.equal(tile(weight).dense(), weight.dense())
    floats = nvfp4(5, columns + 16, seed=columns, global_scale=64.0)
    assert torch.equal(tile(floats).dense(), floats.dense())


def test_nvfp4_is_code_times_scale_over_global_scale() -> None:
    packed = torch.tensor([[0x10 * (i + 1) + i for i in range(0, 16, 2)]], dtype=torch.uint8)
    scale = torch.tensor([[1.5]]).to(torch.float8_e4m3fn)
    wanted = [m * 1.5 / 4 for m in MAGNITUDES] + [-m * 1.5 / 4 for m in MAGNITUDES]
    assert dequantize_nvfp4(packed, scale, torch.tensor([4.0])).flatten().tolist() == wanted


def test_fusing_keeps_every_row_even_where_zero_points_of_two_linears_share_a_word() -> None:
    parts = [int4(rows, 128, 64, False, seed=rows) for rows in (8, 3, 5)]
    fused = concatenate_int4(parts)
    assert torch.equal(fused.dense(), torch.cat([part.dense() for part in parts]))
    assert torch.equal(tile(fused).dense(), fused.dense())


def test_fused_nvfp4_linears_keep_their_global_scales() -> None:
    parts = [nvfp4(4, 64, seed=1, global_scale=2.0), nvfp4(6, 64, seed=2, global_scale=8.0)]
    fused = concatenate_nvfp4([*parts, parts[1]])
    assert fused.global_scales == ((4, 2.0), (12, 8.0))
    assert torch.equal(tile(fused).dense(), torch.cat([part.dense() for part in [*parts, parts[1]]]))


def test_linears_of_different_formats_are_not_fused() -> None:
    with pytest.raises(ValueError, match=r"one format .* int4-sym-g64, .* int4-asym-g64"):
        concatenate_int4([int4(8, 128, 64, True, 0), int4(8, 128, 64, False, 0)])


def test_what_the_kernels_cannot_read_is_said() -> None:
    assert "groups of 16" in str(unsupported(int4(8, 128, 16, True, 0)))
    weight = int4(8, 128, 64, True, 0)
    assert "float16" in str(unsupported(replace(weight, scale=weight.scale.half())))
    floats = nvfp4(8, 64, 0)
    negative = replace(floats, scale=(-floats.scale.float()).to(torch.float8_e4m3fn))
    assert "negative" in str(unsupported(negative))
    with pytest.raises(ValueError, match="cannot read a weight"):
        tile(negative)
