from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'triton'")

from early_emulator import run
from triton.backends.compiler import GPUTarget
from triton.compiler import compile as compile_kernel
from triton.experimental.gluon._runtime import GluonASTSource

from kernels import early, launch
from kernels.config import Config
from kernels.early_matmul import early_matmul
from kernels.samples import exact, int4, nvfp4, relative_error
from kernels.tiles import TICKETS, TiledWeight, tile
from kernels.weights import StoredWeight

# But for g128, rows that fill no tile and a last block that is cut.
WEIGHTS = {
    "g32": int4(72, 1376, 32, False, 1),
    "g64": int4(72, 1344, 64, False, 2),
    "g64 symmetric": int4(136, 448, 64, True, 2),
    "g128": int4(64, 1408, 128, False, 3),
    "nvfp4": nvfp4(72, 1392, 4),
    "nvfp4 cut in a word of scales": nvfp4(104, 1296, 5),
}

# Of eleven blocks: one part; parts that are all full but the last; parts of one block each.
CONFIGS = [
    Config("early", 16, 64, 11, 4, 1, 1),
    Config("early", 16, 64, 4, 4, 1, 3),
    Config("early", 32, 64, 6, 4, 1, 2),
    Config("early", 64, 64, 1, 4, 1, 11),
]

HOPPER = torch.device("cuda")


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early.hopper, "available", lambda device: True)


def rows_of(m: int, columns: int) -> torch.Tensor:
    return torch.randn(m, columns, generator=torch.Generator().manual_seed(m)).bfloat16()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label.replace(" ", "-"))
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("m", [1, 17, 100])
def test_every_part_of_k_is_in_the_product_once_and_nothing_else_is_read(
    name: str, m: int, config: Config
) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = rows_of(m, weight.shape[1])
    bias = torch.linspace(-2, 2, weight.shape[0]) if m == 17 else None
    tiled = tile(weight)
    found = run(x, tiled, bias, config)
    assert relative_error(found, exact(x, weight, bias)) < 1e-5
    assert not tiled.tickets.any()
    # Nor does it matter how soon copies land and which program is the last.
    assert torch.equal(run(x, tiled, bias, config, late=False), found)
    assert not tiled.tickets.any()


def test_rows_of_activations_may_lie_between_others() -> None:
    weight = WEIGHTS["g64"]
    around = rows_of(19, 1344 + 64)
    x = around[:, 32:-32]
    found = run(x, tile(weight), None, CONFIGS[1])
    assert relative_error(found, exact(x, weight, None)) < 1e-5


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("m", [9, 16, 17, 33, 64])
@pytest.mark.parametrize(
    ("rows", "columns"), [(2048, 2048), (2560, 2048), (2048, 11008), (72, 160), (136, 1392)]
)
def test_every_configuration_worth_timing_runs_at_once_and_shares_k_out(
    rows: int, columns: int, m: int
) -> None:
    found = list(early.candidates(m, rows, columns, 132, HOPPER))
    assert len({config.label for config in found}) == len(found)
    # A long weight does not fit into the registers of all programs that run at once.
    assert bool(found) == (columns <= 2048)
    blocks = -(-columns // 128)
    for config in found:
        across, tiles = -(-m // config.block_m), -(-rows // early.ROWS)
        assert config.block_n == early.ROWS and config.warps == 4 and config.block_m in (16, 32, 64)
        assert config.block_m < 2 * m and across <= 2
        assert across * tiles * config.splits <= 2 * 132
        assert config.blocks <= early.LARGEST_SHARE
        assert (config.splits - 1) * config.blocks < blocks <= config.splits * config.blocks


def test_it_is_worth_timing_only_where_it_may_be_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(m: int) -> int:
        return len(list(early.candidates(m, 2048, 2048, 132, HOPPER)))

    monkeypatch.setattr(early.hopper, "available", lambda device: True)
    assert count(early.LEAST_ROWS) and count(early.MOST_ROWS)
    assert not count(early.LEAST_ROWS - 1) and not count(early.MOST_ROWS + 1)
    monkeypatch.setattr(early.hopper, "available", lambda device: False)
    assert not count(16)


def called(
    monkeypatch: pytest.MonkeyPatch, x: torch.Tensor, weight: TiledWeight, config: Config
) -> list[str]:
    """Which of the kernels ``kernels.launch.launch`` takes, none of them run."""
    taken: list[str] = []
    for name in ("launch_early", "launch_hopper", "_through_scratch"):

        def note(
            x: object, weight: object, bias: object, config: object, out: object, name: str = name
        ) -> object:
            taken.append(name)
            return out

        monkeypatch.setattr(launch, name, note)
    launch.launch(x, weight, None, config)
    return taken


@pytest.mark.usefixtures("on_hopper")
def test_activations_that_the_copy_engine_cannot_address_take_another_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = tile(int4(64, 256, 64, False, 1))
    config = Config("early", 16, 64, 1, 4, 1, 2)
    wide = torch.zeros(16, 268, dtype=torch.bfloat16)
    assert called(monkeypatch, wide[:, :256].contiguous(), weight, config) == ["launch_early"]
    # Rows not at multiples of 16 bytes; then the first one neither.
    for x in (wide[:, :256], wide.flatten()[1 : 1 + 16 * 256].view(16, 256)):
        assert called(monkeypatch, x, weight, config) == ["_through_scratch"]


@pytest.mark.usefixtures("on_hopper")
def test_more_tiles_than_tickets_take_another_path(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tile(int4(64 * 40, 128, 128, True, 1))
    config = Config("early", 16, 64, 1, 4, 1, 1)
    most = TICKETS // 40 * 16
    x = torch.zeros(most + 1, 128, dtype=torch.bfloat16)
    assert called(monkeypatch, x[:most], weight, config) == ["launch_early"]
    assert called(monkeypatch, x, weight, config) == ["_through_scratch"]


def test_it_takes_another_path_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tile(int4(64, 256, 64, False, 1))
    x = torch.zeros(16, 256, dtype=torch.bfloat16)
    assert called(monkeypatch, x, weight, Config("early", 16, 64, 1, 4, 1, 2)) == ["_through_scratch"]


@pytest.mark.parametrize(("block_m", "blocks", "splits"), [(16, 4, 4), (32, 6, 3), (16, 2, 1)])
@pytest.mark.parametrize("floats", [False, True], ids=["int4", "nvfp4"])
def test_it_compiles_and_weights_are_decoded_before_the_kernel_before_has_ended(
    floats: bool, block_m: int, blocks: int, splits: int
) -> None:
    """Where the assembler puts the decoding is what counts: it moves what it likes behind a wait."""
    constants = {
        "GROUP": 16 if floats else 64, "FORMAT": int(floats), "REST": 256.0 if floats else 1.0, "BIAS": splits == 1,
        "SPLITS": splits, "BLOCK_M": block_m, "BLOCK_N": early.ROWS, "BLOCKS": blocks, "OVERLAP": True,
    }  # fmt: skip
    kinds = {"codes_ptr": "*i32", "scales_ptr": "*i32", "factor_ptr": "*fp32", "partial_ptr": "*fp32"}
    kinds |= {"ticket_ptr": "*i32", "bias_ptr": "*bf16", "out_ptr": "*bf16"}
    described = {"x_desc": f"tensordesc<bf16[{block_m}, 128],NVMMASharedLayout(128,16,2)>"}
    names = early_matmul.arg_names
    signature = {
        name: "constexpr" if name in constants else (kinds | described).get(name, "i32") for name in names
    }
    source = GluonASTSource(
        early_matmul, signature, {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in kinds or name in ("N", "K")},
    )  # fmt: skip
    kernel = compile_kernel(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "launch_pdl": True}
    )
    ptx, late_ptx = kernel.asm["ptx"].split("griddepcontrol.wait")
    # Words, scales, factors and biases: nothing is read afterwards but what was written meanwhile.
    assert "ld.global" in ptx and ("ld.global" in late_ptx) == (splits > 1)
    assert "cp.async.bulk.tensor" not in ptx and late_ptx.count("cp.async.bulk.tensor") == blocks
    assert late_ptx.count("wgmma.mma_async") == 8 * blocks
    machine, late_machine = kernel.asm["sass"].split("ACQBULK")
    early_steps, late_steps = (len(re.findall("H(?:ADD|MUL|FMA)2", code)) for code in (machine, late_machine))
    # Of a nibble and block a thread has eight weights, made two by two: of an integer its zero goes off, then both
    # kinds are scaled.
    steps = 8 * blocks * 4 * (1 if floats else 2)
    assert early_steps > 0.9 * steps and late_steps < 0.1 * steps
    # Nothing of them is put aside into memory.
    assert "STL" not in machine + late_machine
