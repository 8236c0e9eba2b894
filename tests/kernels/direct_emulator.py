"""Runs the source of ``kernels.direct_matmul`` on the CPU, as ``launch_emulator`` does."""

from __future__ import annotations

from unittest import mock

import torch
from launch_emulator import Launched, unwritten

from kernels import direct, direct_parts
from kernels import direct_matmul as module  # type: ignore[attr-defined,unused-ignore]
from kernels.config import Config
from kernels.tiles import TiledWeight


def run(
    x: torch.Tensor,
    weight: TiledWeight,
    bias: torch.Tensor | None,
    config: Config,
    gated: bool,
    norm: direct.RowNorm | None = None,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x W^T + bias`` float32, or its halves gated; launched as on a GPU that can do everything. With ``before`` the
    product is added to it.
    """
    out = (
        torch.full((x.shape[0], weight.rows // (1 + gated)), torch.nan) if before is None else before.clone()
    )
    launched = Launched("direct_matmul", weight, True, direct_parts, module)
    with (
        mock.patch.object(module, "direct_matmul", launched),
        mock.patch.object(direct, "overlaps", lambda device: True),
        mock.patch.object(torch, "empty", unwritten),
    ):
        return direct.launch_direct(x, weight, bias, config, gated, out, norm, before is not None)
