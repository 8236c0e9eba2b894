"""Run a configuration for the first time, on a small weight: whether it comes to an end with the right numbers."""

from __future__ import annotations

import torch

from kernels.config import Config
from kernels.launch import launch
from kernels.timing import random_rows, random_tiles

LARGEST_ERROR = 8e-3
"""Of a result in bfloat16, relative in norm."""

MULTIPROCESSORS = 160
"""More than a device has, of today's: a kernel whose programs take tiles in turn is tried with as many tiles."""


def attempt(job: tuple[str, Config, bool, bool]) -> str | None:
    """Run a configuration on a small weight, filling Triton's cache; what is wrong with the result, or None.

    Args:
        job: format, configuration, whether gated, and whether all blocks of the weight are whole.
    """
    format, config, gated, even = job  # noqa: A001
    columns = 1024 if even else 896
    turns = config.kernel == "hopper"
    rows = MULTIPROCESSORS * config.block_n // 2 if turns else 512
    m = 2 * config.block_m + 1 if turns else config.block_m
    weight = random_tiles(format, rows, columns, 1)[0]
    x = random_rows(m, columns)
    wanted = x.float() @ weight.dense().float().t()
    if gated:
        gate, up = wanted.chunk(2, dim=1)
        wanted = torch.nn.functional.silu(gate) * up
    for _ in range(2):
        # An element left unwritten shows.
        out = torch.full(wanted.shape, torch.nan, dtype=x.dtype, device=x.device)
        found = launch(x, weight, None, config, gated, out).float()
        error = float((found - wanted).norm() / wanted.norm())
        if not error < LARGEST_ERROR:
            return f"a relative error of {error:.2g}"
    return None
