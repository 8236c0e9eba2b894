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
from kernels.direct import division
from kernels.direct_matmul import direct_matmul
from kernels.few_rows import sums_layout
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

# Of 27 blocks, which are 4 steps of 8: the last one partly behind the end.
COPYABLE = {
    "g32": int4(40, 3456, 32, False, 1),
    "g64": int4(40, 3456, 64, False, 2),
    "g128": int4(40, 3456, 128, True, 3),
    "nvfp4": nvfp4(40, 3456, 4),
}

# With the steps of a program that are held, and those that are copied.
COPIES = {
    Config("direct", 8, 16, 8, 8, 1, copied=8): (0, 4),
    Config("direct", 8, 16, 8, 4, 1, copied=2): (2, 2),
    Config("direct", 8, 32, 8, 2, 1, copied=1): (3, 1),
    Config("direct", 16, 16, 8, 8, 1, 2, copied=8): (0, 2),
    Config("direct", 8, 16, 8, 8, 1, 3, copied=1): (1, 1),
    Config("direct", 8, 16, 16, 8, 1, copied=1): (1, 1),
}


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


@pytest.mark.parametrize("config", COPIES, ids=lambda config: config.label.replace(" ", "-"))
@pytest.mark.parametrize("name", COPYABLE)
@pytest.mark.parametrize("m", [1, 5, 19])
def test_copied_steps_give_the_whole_product(name: str, m: int, config: Config) -> None:
    weight: StoredWeight = COPYABLE[name]
    x = torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m)).bfloat16()
    bias = torch.linspace(-2, 2, 40) if m == 5 else None
    tiled = tile(weight)
    constants = division(tiled, config, False, m).constants
    assert (constants["STEPS"] - constants["COPIED"], constants["COPIED"]) == COPIES[config]
    assert not constants["LOOP"]
    found = run(x, tiled, bias, config, False)
    assert relative_error(found, exact(x, weight, bias)) < 1e-5
    assert not tiled.tickets.any()


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("weight", [int4(32, 4096, 64, False, 1), nvfp4(32, 4096, 2)], ids=["int4", "nvfp4"])
def test_copied_steps_that_are_all_whole_give_the_whole_product(weight: StoredWeight, m: int) -> None:
    x = torch.randn(m, 4096, generator=torch.Generator().manual_seed(m)).bfloat16()
    config = Config("direct", 8, 16, 8, 8, 1, 2, copied=1)
    assert division(tile(weight), config, False, m).constants["EVEN"]
    assert relative_error(run(x, tile(weight), None, config, False), exact(x, weight, None)) < 1e-5


@pytest.mark.parametrize(
    ("weight", "gated"),
    [
        (int4(40, 1376, 32, False, 1), False),
        (nvfp4(40, 2064, 2), False),
        (int4(42, 2048, 64, True, 3), False),
        (int4(40, 2048, 64, False, 4), True),
    ],
    ids=["part of a block", "part of a word of scales", "unaligned rows", "gated"],
)
@pytest.mark.parametrize("m", [1, 3])
def test_what_the_copy_engine_cannot_address_is_read_without_it(
    weight: StoredWeight, gated: bool, m: int
) -> None:
    x = 0.1 * torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m))
    x = x.bfloat16()
    config = Config("direct", 8, 16, 8, 8, 1, copied=8)
    constants = division(tile(weight), config, gated, m).constants
    assert constants["COPIED"] == 0 and constants["LOOP"]
    assert relative_error(run(x, tile(weight), None, config, gated), exact(x, weight, None, gated)) < 1e-5


@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("m", [1, 5, 16])
@pytest.mark.parametrize(("rows", "columns"), [(2048, 2048), (2560, 2048), (2048, 11008), (64, 160)])
def test_every_configuration_worth_timing_fits_the_kernel_and_the_device(
    rows: int, columns: int, m: int, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "available", lambda device: True)
    monkeypatch.setattr(direct, "copies", lambda device: engine)
    found = list(direct.candidates(m, rows, columns, 132, torch.device("cuda")))
    assert len({config.label for config in found}) == len(found)
    assert any(config.copied for config in found) == (engine and columns == 11008)
    for config in found:
        # At least one block of a step for each warp, and rows enough for the activations.
        assert config.blocks % config.warps == 0 and m <= config.block_m <= 2 * max(m, 4)
        # A swizzled tile is made of pieces of eight rows; words, with the most words of scales, fit a multiprocessor.
        assert not config.copied or config.blocks >= 8
        assert config.copied * config.blocks * config.block_n * (64 + 4 * 4) <= 96 * 1024
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


FORMS = [(form, target) for form in ("one row", "looped", "gated", "nvfp4") for target in (80, 90)]


@pytest.mark.parametrize(("form", "capability"), [*FORMS, ("copied", 90), ("copied nvfp4", 90)])
def test_it_compiles_and_the_compiler_moves_no_operand(form: str, capability: int) -> None:
    """That layouts fit is asserted by the kernel as it is compiled, which takes no GPU."""
    copied, floats = "copied" in form, "nvfp4" in form
    constants = {
        "GROUP": 16 if floats else 64, "FORMAT": int(floats), "REST": 256.0 if floats else 1.0,
        "BIAS": form == "gated", "SWIGLU": form == "gated", "SPLIT": form == "looped", "EVEN": form != "looped",
        "BLOCK_M": 8, "BLOCK_N": 32 if form == "gated" else 16, "BLOCKS": 8,
        "STEPS": 3 if form == "looped" or copied else 1, "WHOLE": 1, "LOOP": form == "looped",
        "COPIED": 2 if copied else 0, "ONE": form in ("one row", "looped", "copied"), "OVERLAP": capability >= 90,
    }  # fmt: skip
    if not copied:
        constants |= {"codes_desc": None, "scales_desc": None}
    kinds = {"codes_ptr": "*i32", "scales_ptr": "*i32", "factor_ptr": "*fp32", "partial_ptr": "*fp32"}
    kinds |= {"ticket_ptr": "*i32"} | dict.fromkeys(("x_ptr", "bias_ptr", "out_ptr"), "*bf16")
    described = {
        "codes_desc": "tensordesc<i32[8, 16, 16],NVMMASharedLayout(64,32,3)>",
        "scales_desc": "tensordesc<i32[8, 16],NVMMASharedLayout(64,32,2)>",
    }
    names = direct_matmul.arg_names
    signature = {
        name: "constexpr" if name in constants else (kinds | described).get(name, "i32") for name in names
    }
    source = GluonASTSource(
        direct_matmul, signature, {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in kinds or name in ("N", "K")},
    )  # fmt: skip
    kernel = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    # The step that is held: sixteen bytes of words a lane and load, as they lie in memory.
    assert "ld.global.v4" in kernel.asm["ptx"]
    # Words and two words of scales for each of the steps that are not.
    assert kernel.asm["ptx"].count("cp.async.bulk.tensor") == (6 if copied else 0)
