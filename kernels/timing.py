"""Timing on a CUDA device: graph replays over weights that come from device memory and not from a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor

from kernels.nvfp4 import GROUP as NVFP4_GROUP
from kernels.tiles import BLOCK, TICKETS, TiledWeight

SHAPES = {
    "qkv": (2560, 2048),
    "o": (2048, 2048),
    "gate_up": (22016, 2048),
    "down": (2048, 11008),
}
"""The fused linears of one full-size expert: rows, columns."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2304, 4608)
"""Rows of activations: decoding, small batches, and 2304 per pass of a 768 x 768 picture."""

ROTATION = 160 * 2**20
"""Bytes of weights that a timed graph passes over: some three times the L2 cache of an H100."""


LEAST_CALLS = 16
"""Calls in a timed graph at least, so that starting it does not count for much."""


def copies_of(nbytes: int) -> int:
    """How many weights of ``nbytes`` make up a rotation."""
    return max(2, -(-ROTATION // nbytes))


@cache
def _aside(device: int) -> torch.cuda.Stream:
    """One stream for all: the vendor's library keeps a workspace of 32 MB for each that it has seen."""
    return torch.cuda.Stream(device)


def _captured(calls: Sequence[Callable[[], object]]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph that makes all ``calls`` in turn, over again until it has some, and how many it makes."""
    stream = _aside(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
        calls[-1]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    rounds = -(-LEAST_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph, rounds * len(calls)


def compare(contenders: Sequence[Sequence[Callable[[], object]]], replays: int = 15) -> list[float]:
    """Median time in microseconds of one call of each contender, from replays of CUDA graphs.

    Each contender is a list of calls that differ in their weights. The replays take turns, so that clock and
    temperature are alike for all.
    """
    graphs = [_captured(calls) for calls in contenders]
    times: list[list[float]] = [[] for _ in graphs]
    for round_ in range(replays + 1):
        for taken, (graph, count) in zip(times, graphs, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            # The first round loads the graphs.
            if round_:
                taken.append(begin.elapsed_time(end) * 1000 / count)
    for graph, _ in graphs:
        graph.reset()
    return [median(taken) for taken in times]


def microseconds(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """As ``compare``, of one contender."""
    return compare([calls], replays)[0]


def random_tiles(format: str, rows: int, columns: int, copies: int) -> list[TiledWeight]:  # noqa: A002
    """Weights of random codes for timing, made on the current CUDA device; ``format`` as ``TiledWeight.format``."""
    device = torch.device("cuda", torch.cuda.current_device())
    floats = format == "nvfp4"
    group = NVFP4_GROUP if floats else int(format.removeprefix("int4-g"))
    blocks = -(-columns // BLOCK)
    factors: Tensor | None = None
    parts: tuple[tuple[int, float], ...] = ()
    weights = []
    for _ in range(copies):
        codes = torch.randint(-(2**31), 2**31, (blocks, rows, 16), dtype=torch.int32, device=device)
        if floats:
            bytes_ = torch.randint(64, 120, (-(-columns // 64), rows, 4), dtype=torch.uint8, device=device)
            scales = bytes_.view(torch.int32).squeeze(-1)
            factors, parts = torch.full((rows,), 0.01, device=device), ((rows, 0.01),)
        else:
            scale = (torch.rand(columns // group, rows, device=device) * 0.02 + 0.003).bfloat16()
            offset = (-128.0 - torch.randint(0, 16, scale.shape, device=device)).bfloat16()
            low = scale.view(torch.int16).to(torch.int32) & 0xFFFF
            scales = offset.view(torch.int16).to(torch.int32) << 16 | low
        tickets = torch.zeros(TICKETS, dtype=torch.int32, device=device)
        weights.append(TiledWeight(rows, columns, group, format, codes, scales, factors, parts, tickets))
    return weights


def random_rows(m: int, columns: int) -> Tensor:
    """Activations bfloat16 [m, columns] on the current CUDA device."""
    return torch.randn(m, columns, device="cuda", dtype=torch.bfloat16)


def read_bandwidth() -> float:
    """Bytes a second at which the device reads 4 GB once, the best of summing and copying."""
    data = torch.empty(2**30, dtype=torch.float32, device="cuda").uniform_()
    half = data.numel() // 2
    summed = data.nbytes / microseconds([data.sum], 7)
    copied = data.nbytes / microseconds([lambda: data[:half].copy_(data[half:])], 7)
    return max(summed, copied) * 1e6
