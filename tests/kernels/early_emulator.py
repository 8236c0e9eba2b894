"""Runs the source of ``kernels.early_matmul`` on the CPU, as ``launch_emulator`` does; products of matrices happen only
when they are waited for.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from gluon_emulator import Products
from launch_emulator import Launched, Program, unwritten

from kernels import early
from kernels import early_matmul as module  # type: ignore[attr-defined,unused-ignore]
from kernels.config import Config
from kernels.tiles import TiledWeight


class EarlyProgram(Program):
    """One program of a launch."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.products = Products()
        self.names |= {"warpgroup_mma": self.products.multiply, "warpgroup_mma_wait": self.products.finish}

    def run(self, kernel: str, *modules: Any, **arguments: Any) -> None:
        super().run(kernel, *modules, **arguments)
        assert not self.products.pending, "a product that nothing has waited for"


class EarlyLaunched(Launched):
    program = EarlyProgram


def run(
    x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, config: Config, late: bool = True
) -> torch.Tensor:
    """``x W^T + bias`` float32, launched as on a Hopper GPU."""
    out = torch.full((x.shape[0], weight.rows), torch.nan)
    with (
        mock.patch.object(module, "early_matmul", EarlyLaunched("early_matmul", weight, late, module)),
        mock.patch.object(early, "overlaps", lambda device: True),
        mock.patch.object(torch, "empty", unwritten),
    ):
        return early.launch_early(x, weight, bias, config, out)
