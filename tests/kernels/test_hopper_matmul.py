from __future__ import annotations

import ast

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'triton'")

from gluon_emulator import KERNELS, run, run_wide, source

from kernels.samples import exact, int4, nvfp4, relative_error
from kernels.tiles import tile
from kernels.weights import StoredWeight

WEIGHTS = {
    "g32": int4(40, 416, 32, False, 1),
    "g64": int4(40, 448, 64, False, 2),
    "g128": int4(40, 384, 128, True, 3),
    "nvfp4": nvfp4(40, 400, 4),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(("m", "programs", "stages"), [(19, 3, 2), (8, 12, 3), (24, 1, 4)])
def test_tiles_in_turn_give_the_whole_product(
    name: str, splits: int, m: int, programs: int, stages: int
) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m)).bfloat16()
    bias = torch.linspace(-2, 2, 40) if stages == 3 else None
    tiled = tile(weight)
    found = run(x, tiled, bias, 8, 16, stages, splits, programs)
    assert relative_error(found, exact(x, weight, bias)) < 1e-5
    assert not tiled.tickets.any()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("block_m", "m", "stages", "programs"),
    [
        (8, 24, 5, 1),
        (8, 19, 2, 3),
        (12, 36, 3, 3),
        (12, 25, 5, 12),
        (12, 9, 6, 2),
        (10, 19, 5, 4),
        (10, 7, 2, 9),
    ],
)
def test_wide_tiles_in_turn_give_the_whole_product(
    name: str, block_m: int, m: int, stages: int, programs: int
) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m)).bfloat16()
    bias = torch.linspace(-2, 2, 40) if stages == 5 else None
    found = run_wide(x, tile(weight), bias, block_m, 16, stages, programs)
    assert relative_error(found, exact(x, weight, bias)) < 1e-5


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("block_m", "m", "stages", "programs"), [(8, 19, 2, 3), (12, 36, 5, 2), (12, 9, 3, 7)]
)
def test_gate_and_up_meet_in_wide_tiles(name: str, block_m: int, m: int, stages: int, programs: int) -> None:
    weight: StoredWeight = WEIGHTS[name]
    x = torch.randn(m, weight.shape[1], generator=torch.Generator().manual_seed(m)).bfloat16()
    bias = torch.linspace(-2, 2, 40) if stages == 5 else None
    found = run_wide(x, tile(weight), bias, block_m, 32, stages, programs, gated=True)
    assert relative_error(found, exact(x, weight, bias, gated=True)) < 1e-5


def test_no_loop_carries_a_variable_that_triton_would_take_for_a_constant() -> None:
    """A loop's variables are found by running its body once: one that is only set to another's value, or to a number,
    is then what it was before the loop. The compiled kernel would wait for ever; the emulator does not.
    """
    checked = 0
    nodes = [node for module in KERNELS for node in ast.parse(source(module)).body]
    for function in (node for node in nodes if isinstance(node, ast.FunctionDef)):
        for loop in (node for node in ast.walk(function) if isinstance(node, ast.For)):
            within = set(ast.walk(loop))
            before = {
                node.id
                for node in ast.walk(function)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in within
            }
            for statement in (node for node in loop.body if isinstance(node, ast.Assign)):
                assigned = {node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)}
                carried = bool(assigned & before)
                assert not (carried and isinstance(statement.value, ast.Name | ast.Constant)), (
                    f"{function.name}: {ast.unparse(statement)}"
                )
                checked += carried
    assert checked
