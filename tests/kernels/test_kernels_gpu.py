"""The Triton kernels on a CUDA device: ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from kernels.config import Config
from kernels.linear import linear, linear_swiglu, path, prepare
from kernels.samples import exact, int4, moved, nvfp4, relative_error
from kernels.tiles import TiledWeight, tile
from kernels.weights import StoredWeight, concatenate_nvfp4

pytestmark = pytest.mark.gpu
if torch.cuda.is_available():
    from kernels.launch import decode_rows, launch

BOUND = {torch.bfloat16: 4e-3, torch.float16: 8e-4}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2304, 4608)
ODD = (3, 7, 19, 33, 77, 129, 300, 1023)


def draw(m: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(m, columns, generator=torch.Generator().manual_seed(m)).to("cuda", dtype)


def check(
    weight: StoredWeight, ms: tuple[int, ...], dtype: torch.dtype, config: Config | None = None
) -> None:
    tiled = prepare(weight)
    assert isinstance(tiled, TiledWeight)
    rows, columns = weight.shape
    bias = torch.linspace(-2, 2, rows).to("cuda", dtype)
    for m in ms:
        x = draw(m, columns, dtype)
        for addend in (None, bias):
            # What the allocator hands out next is not a number, so an element left unwritten shows.
            torch.full((m, rows), torch.nan, dtype=dtype, device="cuda")
            found = linear(x, tiled, addend) if config is None else launch(x, tiled, addend, config)
            error = relative_error(found, exact(x, weight, addend))
            assert error < BOUND[dtype], f"m {m}, bias {addend is not None}: {error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_int4_at_every_number_of_rows(dtype: torch.dtype, group: int, symmetric: bool) -> None:
    check(moved(int4(512, 1024, group, symmetric, group), "cuda"), ROWS + ODD, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_nvfp4_at_every_number_of_rows(dtype: torch.dtype) -> None:
    check(moved(nvfp4(512, 1024, 9), "cuda"), ROWS + ODD, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "weight", [int4(531, 864, 32, False, 1), int4(77, 192, 64, False, 2), nvfp4(531, 1040, 3)],
    ids=["int4-g32", "int4-g64", "nvfp4"],
)  # fmt: skip
def test_shapes_that_fill_no_whole_tile(dtype: torch.dtype, weight: StoredWeight) -> None:
    check(moved(weight, "cuda"), (1, 5, 16, 40, 100, 600), dtype)
    check(moved(weight, "cuda"), (1, 5, 16), dtype, Config("direct", 8, 16, 4, 2, 1))
    check(moved(weight, "cuda"), (1, 11), dtype, Config("direct", 16, 32, 2, 2, 8, 2))


@pytest.mark.parametrize(
    "config",
    [
        Config("direct", 8, 16, 16, 4, 1),
        Config("direct", 8, 16, 4, 1, 1, registers=168),
        Config("direct", 8, 32, 2, 2, 4, 2),
        Config("direct", 16, 16, 4, 4, 1, 3),
        Config("direct", 8, 64, 8, 8, 1),
        Config("early", 16, 64, 4, 4, 1, 2),
        Config("early", 32, 64, 3, 4, 1, 3),
        Config("matmul", 8, 16, 1, 1, 4, 2),
        Config("matmul", 8, 32, 1, 2, 4, 5),
        Config("matmul", 8, 128, 1, 8, 4),
        Config("matmul", 8, 16, 4, 4, 3, ahead=100),
        Config("matmul", 8, 32, 4, 8, 3, 2),
        Config("matmul", 8, 16, 16, 16, 2),
        Config("matmul", 16, 16, 8, 8, 2, ahead=0),
        Config("matmul", 64, 64, 2, 8, 2, 3, ahead=2),
        Config("matmul", 16, 64, 1, 4, 5, 8),
        Config("matmul", 32, 128, 1, 8, 3, 2),
        Config("matmul", 32, 32, 2, 4, 3),
        Config("matmul", 64, 128, 1, 4, 3, 4),
        Config("matmul", 128, 256, 1, 8, 2),
        Config("expand", chunk=200),
    ],
    ids=lambda config: config.label.replace(" ", "-"),
)
@pytest.mark.parametrize(
    "weight", [int4(576, 1024, 64, False, 4), nvfp4(576, 1024, 5)], ids=["int4", "nvfp4"]
)
def test_configurations_that_only_tuning_chooses(config: Config, weight: StoredWeight) -> None:
    check(moved(weight, "cuda"), (1, config.block_m + 3), torch.bfloat16, config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "weight", [int4(1024, 512, 64, False, 6), nvfp4(1024, 512, 7)], ids=["int4", "nvfp4"]
)
def test_gate_and_up_in_one_launch(dtype: torch.dtype, weight: StoredWeight) -> None:
    stored = moved(weight, "cuda")
    for m in (1, 6, 30, 200, 1500):
        x = draw(m, 512, dtype) * 0.1
        found = linear_swiglu(x, prepare(stored))
        assert relative_error(found, exact(x, stored, None, gated=True)) < BOUND[dtype]


@pytest.mark.parametrize(
    "weight", [int4(200, 512, 64, False, 8), int4(200, 512, 32, True, 8)], ids=["asym", "sym"]
)
def test_decoded_integers_are_bit_for_bit_the_reference(weight: StoredWeight) -> None:
    stored = moved(weight, "cuda")
    found = decode_rows(tile(stored), 0, 200, torch.empty(0, dtype=torch.bfloat16, device="cuda"))
    assert torch.equal(found, stored.dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_decoded_nvfp4_is_exact(dtype: torch.dtype) -> None:
    stored = moved(nvfp4(200, 512, 8, 1.0), "cuda")
    found = decode_rows(tile(stored), 0, 200, torch.empty(0, dtype=dtype, device="cuda"))
    rest = 2.0**8 if dtype == torch.bfloat16 else 2.0**7
    assert torch.equal(found.double() * rest, stored.dense().double())


def test_fused_nvfp4_with_global_scales_of_its_own_per_part() -> None:
    parts = [nvfp4(256, 512, seed, scale) for seed, scale in ((1, 3.0), (2, 700.0))]
    check(moved(concatenate_nvfp4(parts), "cuda"), (1, 64, 700), torch.bfloat16)


@pytest.mark.parametrize(
    "config",
    [
        Config("matmul", 8, 64, 1, 4, 3, 8),
        Config("direct", 8, 16, 2, 2, 1, 4),
        Config("early", 16, 64, 4, 4, 1, 4),
    ],
    ids=lambda config: config.kernel,
)
def test_a_captured_graph_splits_k_again_at_every_replay(config: Config) -> None:
    stored = moved(int4(512, 2048, 64, False, 3), "cuda")
    tiled = tile(stored)
    x = draw(4, 2048, torch.bfloat16)
    launch(x, tiled, None, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = launch(x, tiled, None, config)
    results = []
    for seed in range(3):
        x.copy_(torch.randn(4, 2048, generator=torch.Generator().manual_seed(seed)))
        out.fill_(torch.nan)
        for _ in range(20):
            graph.replay()
        assert relative_error(out, exact(x, stored, None)) < 4e-3
        results.append(out.clone())
        graph.replay()
        assert torch.equal(out, results[-1])


@pytest.mark.parametrize(
    "config",
    [
        Config("direct", 8, 16, 8, 4, 1),
        Config("direct", 8, 16, 4, 2, 2, 2),
        Config("early", 16, 64, 4, 4, 1, 2),
        Config("early", 32, 64, 6, 4, 1, 2),
        Config("matmul", 8, 16, 4, 4, 3, ahead=16),
        Config("matmul", 8, 32, 1, 2, 4, 4, ahead=2),
        Config("matmul", 16, 64, 1, 4, 3, 8, ahead=0),
        Config("matmul", 64, 64, 1, 4, 3, 3, ahead=4),
    ],
    ids=lambda config: config.label.replace(" ", "-"),
)
@pytest.mark.parametrize("one", [True, False], ids=["one row", "whole tile"])
def test_a_chain_of_early_starts_reads_what_was_written_and_overwrites_what_was_read(
    config: Config, one: bool
) -> None:
    """Two buffers in turn, by kernels that start before the one they depend on has ended."""
    tiled = [tile(moved(int4(1024, 1024, 64, False, seed), "cuda")) for seed in range(3)]
    first = draw(1 if one else config.block_m, 1024, torch.bfloat16)
    buffers = [torch.empty_like(first), torch.empty_like(first)]

    def run(wait: bool) -> torch.Tensor:
        buffers[1].copy_(first)
        for i in range(24):
            launch(buffers[1 - i % 2], tiled[i % 3], None, config, out=buffers[i % 2])
            if i % 3 == 2:
                # Scaled back by a kernel that does not start early.
                buffers[i % 2].mul_(0.02)
            if wait:
                torch.cuda.synchronize()
        return buffers[1].clone()

    wanted = run(wait=True)
    assert wanted.isfinite().all() and wanted.any()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(wait=False)
    for _ in range(30):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, wanted)


def test_a_weight_that_no_kernel_reads_runs_in_torch_with_one_warning() -> None:
    weight = moved(int4(64, 128, 64, False, 1), "cuda")
    halves = replace(weight, scale=weight.scale.half())  # type: ignore[type-var]
    x = draw(3, 128, torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="slow reference path"):
        prepared = prepare(halves)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(halves)
    assert path(prepared) == "torch-reference:cuda"
    assert relative_error(linear(x, prepared), exact(x, halves, None)) < 4e-3


def test_activations_at_an_odd_address_are_read_right() -> None:
    stored = moved(int4(128, 256, 64, False, 2), "cuda")
    wide = draw(5, 263, torch.bfloat16)
    x = wide[:, 3:259]
    assert relative_error(linear(x, prepare(stored)), exact(x, stored, None)) < 4e-3
