"""What runs at many rows of activations, on a CUDA device: ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from kernels.config import Config
from kernels.decoder_ops import swiglu
from kernels.fp8 import (
    fp8_linear,
    multiply_reference,
    quantize_rows,
    quantize_rows_reference,
    quantize_swiglu,
    quantize_weight,
)
from kernels.samples import exact, int4, moved, nvfp4, relative_error
from kernels.tiles import tile
from kernels.weights import StoredWeight

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")]
if HOPPER:
    from kernels.hopper import TILES, fits
    from kernels.launch import launch
    from kernels.wide import TILES as WIDE_TILES
else:
    TILES = WIDE_TILES = ()

BOUND = {torch.bfloat16: 4e-3, torch.float16: 8e-4}


def draw(m: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(m, columns, generator=torch.Generator().manual_seed(m)).to("cuda", dtype)


def check(
    stored: StoredWeight, m: int, config: Config, dtype: torch.dtype = torch.bfloat16, bias: bool = False
) -> None:
    weight = moved(stored, "cuda")
    tiled = tile(weight)
    x = draw(m, weight.shape[1], dtype)
    addend = torch.linspace(-2, 2, weight.shape[0]).to("cuda", dtype) if bias else None
    first = None
    for _ in range(3):
        out = torch.full((m, weight.shape[0]), torch.nan, dtype=dtype, device="cuda")
        found = launch(x, tiled, addend, config, out=out)
        assert relative_error(found, exact(x, weight, addend)) < BOUND[dtype]
        first = found.clone() if first is None else first
        assert torch.equal(found, first)
    assert not tiled.tickets.any()


def hopper(tile: tuple[int, int, int, int], splits: int) -> Config:
    block_m, block_n, warps, stages = tile
    return Config("hopper", block_m, block_n, 1, warps, stages, splits)


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_gives_the_product_when_programs_take_one_and_when_they_take_several(
    tile: tuple[int, int, int, int], splits: int
) -> None:
    config = hopper(tile, splits)
    check(int4(592, 1088, 64, False, 1), 300, config)
    check(int4(4624, 448, 64, False, 2), 1023, config)
    check(nvfp4(4624, 400, 4), 1023, config)


@pytest.mark.parametrize("tile", WIDE_TILES, ids=str)
def test_every_wide_tile_gives_the_product_when_programs_take_one_and_when_they_take_several(
    tile: tuple[int, int, int, int],
) -> None:
    config = hopper(tile, 1)
    check(int4(592, 1088, 64, False, 1), 300, config)
    check(int4(4624, 448, 64, False, 2), 2309, config)
    check(nvfp4(4624, 400, 4), 2304, config, bias=True)
    check(int4(4624, 96, 32, False, 2), 1023, config)


@pytest.mark.parametrize("shape", WIDE_TILES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_gate_and_up_meet_in_wide_tiles(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    samples = (int4(1200, 1088, 64, False, 1), int4(4640, 416, 32, True, 2), nvfp4(4640, 400, 4))
    for stored, m in zip(samples, (300, 1023, 2304), strict=True):
        weight, x = moved(stored, "cuda"), draw(m, stored.shape[1], dtype)
        bias = torch.linspace(-2, 2, stored.shape[0]).to("cuda", dtype)
        for addend in (None, bias):
            out = torch.full((m, stored.shape[0] // 2), torch.nan, dtype=dtype, device="cuda")
            found = launch(x, tile(weight), addend, hopper(shape, 1), True, out)
            assert relative_error(found, exact(x, weight, addend, gated=True)) < BOUND[dtype]


@pytest.mark.parametrize("tile", WIDE_TILES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_group_and_dtype_in_wide_tiles(
    group: int, dtype: torch.dtype, tile: tuple[int, int, int, int]
) -> None:
    for m in (1, 577):
        check(int4(600, 1152, group, group == 128, 1), m, hopper(tile, 1), dtype, bias=True)
    check(nvfp4(600, 1040, 3), 577, hopper(tile, 1), dtype)


@pytest.mark.parametrize("share", [1, 4, 6, 9])
@pytest.mark.parametrize("block_m", [16, 32, 64])
def test_a_weight_decoded_early_gives_the_product_whatever_is_behind_the_last_block_and_row(
    block_m: int, share: int
) -> None:
    config = Config("early", block_m, 64, share, 4)
    for m in (1, 33, 100):
        check(int4(592, 1088, 64, False, 1), m, config)
    check(nvfp4(600, 1040, 4), 64, config, bias=True)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_group_and_dtype_decoded_early(group: int, dtype: torch.dtype) -> None:
    check(int4(600, 1152, group, group == 128, 1), 20, Config("early", 32, 64, 5, 4), dtype, bias=True)
    check(nvfp4(600, 1040, 3), 20, Config("early", 32, 64, 5, 4), dtype, bias=True)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_group_and_dtype(group: int, dtype: torch.dtype) -> None:
    for m in (1, 257, 1023):
        check(int4(600, 1152, group, group == 128, 1), m, hopper(TILES[0], 1), dtype, bias=True)
    check(nvfp4(600, 1040, 3), 257, hopper(TILES[1], 2), dtype, bias=True)


@pytest.mark.parametrize("kernel", ["hopper", "early"])
def test_what_the_copy_engine_cannot_address_takes_another_path(kernel: str) -> None:
    wide = draw(300, 867)
    x = wide[:, 1:865]
    assert not fits(x, x)
    weight = moved(int4(531, 864, 32, False, 1), "cuda")
    config = hopper(TILES[0], 1) if kernel == "hopper" else Config("early", 64, 64, 4, 4, 1, 2)
    found = launch(x, tile(weight), None, config)
    assert relative_error(found, exact(x, weight, None)) < 4e-3


def test_results_may_be_written_between_others() -> None:
    weight = moved(int4(592, 1088, 64, False, 1), "cuda")
    x = draw(300, 1088)
    around = torch.full((300, 656), 7.0, dtype=torch.bfloat16, device="cuda")
    found = launch(x, tile(weight), None, hopper(TILES[0], 1), out=around[:, 32:624])
    assert relative_error(found, exact(x, weight, None)) < 4e-3
    assert (around[:, :32] == 7).all() and (around[:, 624:] == 7).all()


@pytest.mark.parametrize("columns", [208, 2048, 11008])
def test_rows_are_rounded_to_fp8_as_the_reference_does(columns: int) -> None:
    x = draw(77, columns)
    x[3] = 0
    codes, scale = quantize_rows(x)
    wanted, wanted_scale = quantize_rows_reference(x)
    assert torch.allclose(scale, wanted_scale, rtol=1e-6, atol=0)
    same = codes.view(torch.uint8) == wanted.view(torch.uint8)
    assert same.float().mean() > 0.9999


@pytest.mark.parametrize("columns", [208, 2048, 11008])
def test_gated_rows_are_rounded_to_fp8_as_the_reference_does(columns: int) -> None:
    both = draw(45, 2 * columns)
    codes, scale = quantize_swiglu(both)
    active = swiglu(both, torch.empty(45, columns, dtype=both.dtype, device="cuda"))
    wanted, wanted_scale = quantize_rows_reference(active)
    assert torch.allclose(scale, wanted_scale, rtol=1e-6, atol=0)
    assert (codes.view(torch.uint8) == wanted.view(torch.uint8)).float().mean() > 0.9999


@pytest.mark.parametrize(("m", "rows", "columns"), [(300, 512, 2048), (1, 512, 208), (33, 531, 208)])
def test_an_fp8_product_is_the_reference_s(m: int, rows: int, columns: int) -> None:
    weight = quantize_weight(torch.randn(rows, columns, device="cuda") * 0.02)
    x = draw(m, columns)
    bias = torch.linspace(-2, 2, rows).to("cuda", torch.bfloat16)
    for addend in (None, bias):
        found = fp8_linear(x, weight, addend)
        wanted = multiply_reference(*quantize_rows_reference(x), weight, addend, x.dtype)
        assert relative_error(found, wanted.double()) < 5e-3
