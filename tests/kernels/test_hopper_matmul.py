from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'triton'")

from gluon_emulator import run

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
