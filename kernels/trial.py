"""Run a configuration for the first time, on a small weight: whether it comes to an end with the right numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.config import Config
from kernels.launch import launch
from kernels.timing import random_rows, random_tiles

LARGEST_ERROR = 8e-3
"""Of a result in bfloat16, relative in norm."""

MULTIPROCESSORS = 160
"""More than a device has, of today's: a kernel whose programs take tiles in turn is tried with as many tiles."""


@dataclass(frozen=True)
class Trial:
    """A configuration to run on a small weight of ``columns``."""

    format: str
    config: Config
    gated: bool
    columns: int


def attempt(trial: Trial) -> str | None:
    """Run a configuration on a small weight, filling Triton's cache; what is wrong with the result, or None."""
    config, columns = trial.config, trial.columns
    turns = config.kernel == "hopper"
    rows = MULTIPROCESSORS * config.block_n // 2 if turns else 512
    weight = random_tiles(trial.format, rows, columns, 1)[0]
    # One row is a kernel of its own where there are few.
    for m in (
        (1, config.block_m) if config.kernel == "direct" else (config.block_m + turns * (config.block_m + 1),)
    ):
        x = random_rows(m, columns)
        wanted = x.float() @ weight.dense().float().t()
        if trial.gated:
            gate, up = wanted.chunk(2, dim=1)
            wanted = torch.nn.functional.silu(gate) * up
        for _ in range(2):
            # An element left unwritten shows.
            out = torch.full(wanted.shape, torch.nan, dtype=x.dtype, device=x.device)
            found = launch(x, weight, None, config, trial.gated, out).float()
            error = float((found - wanted).norm() / wanted.norm())
            if not error < LARGEST_ERROR:
                return f"a relative error of {error:.2g}"
    return None
