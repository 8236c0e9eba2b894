from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'triton'")

from direct_emulator import run
from triton.backends.compiler import GPUTarget
from triton.compiler import compile as compile_kernel
from triton.experimental.gluon._runtime import GluonASTSource

from kernels import direct
from kernels.config import Config
from kernels.direct import RowNorm, division
from kernels.direct_matmul import direct_matmul
from kernels.direct_parts import sums_layout
from kernels.samples import exact, int4, nvfp4, relative_error
from kernels.tiles import tile
from kernels.weights import StoredWeight

WEIGHTS = {
    "g32": int4(40, 1376, 32, False, 1),
    "g64": int4(40, 1408, 64, False, 2),
    "g128": int4(40, 1024, 128, True, 3),
    "nvfp4": nvfp4(40, 1392, 4),
}

CONFIGS = [
    Config("direct", 8, 16, 16, 4, 1),
    Config("direct", 8, 16, 4, 2, 3),
    Config("direct", 8, 32, 4, 4, 1),
    Config("direct", 8, 16, 2, 2, 8, 2),
    Config("direct", 16, 16, 2, 1, 1, 3),
    Config("direct", 8, 16, 1, 1, 4, 4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label.replace(" ", "-"))
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("m", [1, 5, 19])
def test_every_division_of_k_gives_the_whole_product_and_reads_nothing_else(
    name: str, m: int, config: Config
) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m)).bfloat16()
    bias = torch.linspace(-2, 2, 40) if m == 5 else None
    tiled = tile(weight)
    found = run(x, tiled, bias, config, False)
    assert relative_error(found, exact(x, weight, bias)) < 1e-5
    assert not tiled.tickets.any()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("m", [1, 3])
def test_gate_and_up_meet_in_one_program(name: str, m: int) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = 0.1 * torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m))
    x = x.bfloat16()
    found = run(x, tile(weight), None, Config("direct", 8, 16, 4, 2, 1), True)
    assert relative_error(found, exact(x, weight, None, gated=True)) < 1e-5


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("step", [4, 16])
def test_a_row_is_normed_on_its_way(name: str, gated: bool, step: int) -> None:
    weight: StoredWeight = WEIGHTS[name]
    generator = torch.Generator().manual_seed(step)
    x = 3 * torch.randn(1, weight.shape[1], generator=generator).bfloat16()
    norm = RowNorm(torch.randn(weight.shape[1], generator=generator).bfloat16(), 1e-3)
    wide = x.double()
    normed = wide * torch.rsqrt(wide.pow(2).mean() + norm.eps) * norm.weight
    found = run(x, tile(weight), None, Config("direct", 8, 16, step, 4, 8), gated, norm)
    assert relative_error(found, exact(normed, weight, None, gated=gated)) < 1e-5


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("m", [1, 3])
def test_a_product_is_added_to_what_is_there(name: str, splits: int, m: int) -> None:
    weight: StoredWeight = WEIGHTS[name]
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, weight.shape[1], generator=generator).bfloat16()
    before, bias = torch.randn(m, 40, generator=generator), torch.linspace(-2, 2, 40)
    tiled = tile(weight)
    found = run(x, tiled, bias, Config("direct", 8, 16, 4, 4, 1, splits), False, before=before)
    assert relative_error(found, exact(x, weight, bias) + before) < 1e-5
    assert not tiled.tickets.any()


@pytest.mark.parametrize("blocks", [1, 8, 11, 86])
@pytest.mark.parametrize("splits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("step", [1, 4, 16])
def test_no_part_of_k_is_empty_and_whole_steps_are_whole(blocks: int, splits: int, step: int) -> None:
    weight = tile(int4(16, 128 * blocks, 128, False, 1))
    divided = division(weight, Config("direct", 8, 16, step, 1, 1, splits), False, 1)
    parts = [min(divided.share, blocks - i * divided.share) for i in range(divided.grid[2])]
    assert sum(parts) == blocks and min(parts) > 0
    assert divided.constants["STEPS"] == -(-divided.share // step)
    assert divided.constants["WHOLE"] == min(parts) // step
    assert divided.constants["EVEN"] == all(part == divided.share and part % step == 0 for part in parts)


@pytest.mark.parametrize("m", [1, 5, 16])
@pytest.mark.parametrize(("rows", "columns"), [(2048, 2048), (2560, 2048), (2048, 11008), (64, 160)])
def test_every_configuration_worth_timing_fits_the_kernel(
    rows: int, columns: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "available", lambda device: True)
    found = list(direct.candidates(m, rows, columns, 132, torch.device("cuda")))
    assert len({config.label for config in found}) == len(found)
    # Two blocks do not even fill most of the smallest step.
    assert bool(found) == (columns > 160)
    for config in found:
        # At least one block of a step for each warp, and rows enough for the activations.
        assert config.blocks % config.warps == 0 and m <= config.block_m <= 2 * max(m, 4)
    assert not list(direct.candidates(direct.MOST_ROWS + 1, rows, columns, 132, torch.device("cuda")))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("columns", [8, 16])
@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("warps", [1, 2, 4, 8])
def test_every_part_of_every_sum_is_with_some_thread(
    warps: int, rows: int, columns: int, gated: bool
) -> None:
    layout = sums_layout(warps, rows, columns, gated)
    assert len(layout.lane_bases) == 5 and 2 ** len(layout.warp_bases) == warps
    places = {(0, 0, 0)}
    for base in [*layout.reg_bases, *layout.lane_bases, *layout.warp_bases]:
        places |= {tuple(a ^ b for a, b in zip(place, base, strict=True)) for place in places}
    assert places == {(w, n, m) for w in range(warps) for n in range(rows) for m in range(columns)}
    # A gate and its up meet in one thread's registers.
    assert ([0, rows // 2, 0] in layout.reg_bases) >= gated


@pytest.mark.parametrize("form", ["one row", "looped", "gated", "nvfp4", "normed"])
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_and_the_compiler_moves_no_operand(form: str, capability: int) -> None:
    """That layouts fit is asserted by the kernel as it is compiled, which takes no GPU."""
    constants = {
        "GROUP": 16 if form == "nvfp4" else 64, "FORMAT": int(form == "nvfp4"),
        "REST": 256.0 if form == "nvfp4" else 1.0, "BIAS": form == "gated", "SWIGLU": form == "gated",
        "SPLIT": form == "looped", "EVEN": form != "looped", "BLOCK_M": 8,
        "BLOCK_N": 32 if form == "gated" else 16, "BLOCKS": 8, "STEPS": 3 if form == "looped" else 1, "WHOLE": 1,
        "LOOP": form == "looped", "ONE": form in ("one row", "looped", "normed"), "NORM": form == "normed",
        "ADD": form in ("looped", "nvfp4"), "OVERLAP": capability >= 90,
    }  # fmt: skip
    pointers = {"codes_ptr": "*i32", "scales_ptr": "*i32", "factor_ptr": "*fp32", "partial_ptr": "*fp32"}
    pointers |= {"ticket_ptr": "*i32"} | dict.fromkeys(("x_ptr", "norm_ptr", "bias_ptr", "out_ptr"), "*bf16")
    pointers |= {"eps": "fp32"}
    names = direct_matmul.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    source = GluonASTSource(
        direct_matmul, signature, {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name[-4:] == "_ptr" or name in ("N", "K")},
    )  # fmt: skip
    kernel = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    # Sixteen bytes of words a lane and load, as they lie in memory.
    assert "ld.global.v4" in kernel.asm["ptx"]
