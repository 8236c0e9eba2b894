"""The Triton kernels on the CPU, by Triton's interpreter: run by test_interpreted, which sets it up.

Activations are float16: the interpreter's bfloat16 arithmetic is wrong.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.config import Config
from kernels.launch import decode_rows, launch
from kernels.linear import linear, linear_swiglu, path, prepare
from kernels.samples import exact, int4, nvfp4, relative_error
from kernels.tiles import tile
from kernels.weights import StoredWeight, concatenate_nvfp4

DEEP = Config("matmul", 8, 16, 2, stages=1)
MATMUL = Config("matmul", 16, 32, stages=2)
EXPAND = Config("expand")
WEIGHTS = {
    "g32 asym": int4(40, 160, 32, False, 1),
    "g64 asym": int4(27, 256, 64, False, 2),
    "g64 sym": int4(40, 192, 64, True, 3),
    "g128 asym": int4(33, 256, 128, False, 4),
    "nvfp4": nvfp4(40, 208, 5),
}


def draw(m: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, columns, generator=torch.Generator().manual_seed(seed)).half()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("config", "m"), [(DEEP, 1), (DEEP, 9), (MATMUL, 5), (MATMUL, 19), (EXPAND, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_every_kernel_multiplies_every_format(name: str, config: Config, m: int, bias: bool) -> None:
    weight = WEIGHTS[name]
    rows, columns = weight.shape
    x = draw(m, columns)
    addend = torch.linspace(-1, 1, rows).half() if bias else None
    found = launch(x, tile(weight), addend, config)
    assert relative_error(found, exact(x, weight, addend)) < 6e-4


@pytest.mark.parametrize("name", ["g32 asym", "nvfp4"])
@pytest.mark.parametrize(("config", "m"), [(DEEP, 1), (MATMUL, 3)])
@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_splitting_k_and_gating_change_no_result(
    name: str, config: Config, m: int, splits: int, gated: bool
) -> None:
    weight = WEIGHTS[name]
    x = draw(m, weight.shape[1])
    tiled = tile(weight)
    split = replace(config, block_n=16, splits=splits)
    found = launch(x, tiled, None, split, gated)
    assert relative_error(found, exact(x, weight, None, gated)) < 1e-3
    assert not tiled.tickets.any()


@pytest.mark.parametrize("name", WEIGHTS)
def test_decoded_rows_are_the_reference_weight(name: str) -> None:
    weight = WEIGHTS[name]
    tiled = tile(weight)
    found = decode_rows(tiled, 3, 20, torch.empty(0, dtype=torch.float16)).float()
    if tiled.factors is not None:
        found = found * 2.0**7 * tiled.factors[3:23, None]
    wanted = weight.dense()[3:23].float()
    # Half precision holds 11 bits of the reference's weights but not their smallest exponents.
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-7)


def test_scratch_in_pieces_and_parts_gives_the_same_rows() -> None:
    weight = concatenate_nvfp4([nvfp4(24, 64, 1, 3.0), nvfp4(16, 64, 2, 50.0)])
    x = draw(4, 64)
    bias = torch.linspace(0, 9, 40).half()
    for addend in (None, bias):
        found = launch(x, tile(weight), addend, Config("expand", chunk=10))
        assert relative_error(found, exact(x, weight, addend)) < 6e-4


def test_rows_of_activations_may_lie_apart() -> None:
    weight = WEIGHTS["g64 asym"]
    x = draw(3, 512)[:, :256]
    found = launch(x, tile(weight), None, MATMUL)
    assert relative_error(found, exact(x, weight, None)) < 6e-4


@pytest.mark.parametrize("config", [DEEP, MATMUL, EXPAND])
def test_results_may_be_written_between_others(config: Config) -> None:
    weight = WEIGHTS["g32 asym"]
    x = draw(1 if config is DEEP else 3, 160)
    around = torch.full((x.shape[0], 60), 7.0).half()
    found = launch(x, tile(weight), None, config, out=around[:, 10:50])
    assert relative_error(found, exact(x, weight, None)) < 6e-4
    assert (around[:, :10] == 7).all() and (around[:, 50:] == 7).all()


@pytest.mark.parametrize("weight", [WEIGHTS["g32 asym"], WEIGHTS["nvfp4"]], ids=["int4", "nvfp4"])
def test_the_linear_takes_batches_and_dtypes_that_no_kernel_has(weight: StoredWeight) -> None:
    prepared = prepare(weight)
    assert path(prepared, 4).startswith("triton:matmul")
    rows, columns = weight.shape
    for dtype, bound in ((torch.float16, 1e-3), (torch.float32, 1e-6)):
        x = draw(6, columns).to(dtype).view(2, 3, columns)
        found = linear(x, prepared)
        assert found.shape == (2, 3, rows) and found.dtype == dtype
        assert relative_error(found, exact(x, weight, None)) < bound
        gated = linear_swiglu(x, prepared)
        assert relative_error(gated, exact(x, weight, None, gated=True)) < 2 * bound


def test_activations_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activations \[2, 64\] do not fit a weight \[27, 256\]"):
        linear(draw(2, 64), prepare(WEIGHTS["g64 asym"]))


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out is \[2, 26\] .* wanted \[2, 27\]"):
        linear(draw(2, 256), prepare(WEIGHTS["g64 asym"]), out=torch.empty(2, 26).half())
