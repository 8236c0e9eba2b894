"""Run a configuration for the first time where it can do no harm: in a process of its own, for a limited time.

What is timed afterwards, and written down as the fastest, has computed the right numbers and come to an end.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from kernels.config import Config
from kernels.launch import launch
from kernels.timing import random_rows, random_tiles

Job = TypeVar("Job")

LARGEST_ERROR = 8e-3
"""Of a result in bfloat16, relative in norm."""

MULTIPROCESSORS = 160
"""More than a device has, of today's: a kernel whose programs take tiles in turn is tried with as many tiles."""


def failures(
    function: Callable[[Job], str | None], jobs: Sequence[Job], workers: int, seconds: float
) -> dict[Job, str]:
    """What ``function`` finds wrong with each of ``jobs``, in ``workers`` processes; the others are left out.

    A job that raises or whose process has not answered ``seconds`` after the start has failed as well; processes
    that still run then are ended.
    """
    found: dict[Job, str] = {}
    deadline = time.monotonic() + seconds
    with multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(jobs)))) as pool:
        answers = [(job, pool.apply_async(function, (job,))) for job in jobs]
        for job, answer in answers:
            try:
                wrong = answer.get(max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                wrong = f"no end within {seconds:.0f} s"
            except Exception as error:
                wrong = str(error).splitlines()[0] if str(error) else type(error).__name__
            if wrong is not None:
                found[job] = wrong
    return found


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
