"""Speed of a quantized linear on a CPU: dequantised in every call, and torch's own four-bit product, beside dense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from kernels import samples
from kernels.reference import dequantize_packed
from kernels.weights import Int4Weight

SHAPES = {"o": (2048, 2048), "down": (2048, 11008)}
"""Two of the full-size linears: rows, columns."""

ROWS = (1, 4, 16, 64)
GROUP = 64
DENSE = "bf16"


def microseconds(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Median time of a call, of at least three and as many as fit into ``seconds``."""
    call()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken) * 1e6


def measure(ms: Sequence[int] = ROWS) -> Iterator[list[tuple[str, int, str, float]]]:
    """(linear, rows, implementation, microseconds) of one linear at a time, dense bfloat16 first.

    Args:
        ms: numbers of rows of activations, all bfloat16 but for dense float32.
    """
    for key, (rows, columns) in SHAPES.items():
        stored = samples.int4(rows, columns, GROUP, False, 0)
        dense = torch.randn(rows, columns)
        half = dense.bfloat16()
        groups = columns // GROUP
        words = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(words, 1)
        factors = torch.rand(groups, rows, 2).bfloat16()
        del words

        def reference(x: Tensor, stored: Int4Weight = stored, columns: int = columns) -> Tensor:
            weight = dequantize_packed(stored.packed, stored.scale, stored.zero, 4, columns)
            return torch.nn.functional.linear(x, weight)

        def torch_int4(x: Tensor, packed: Tensor = packed, factors: Tensor = factors) -> object:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, factors)

        found: list[tuple[str, int, str, float]] = []
        for m in ms:
            x = torch.randn(m, columns)
            short = x.bfloat16()
            calls: dict[str, Callable[[], object]] = {
                DENSE: partial(torch.nn.functional.linear, short, half),
                "float32": partial(torch.nn.functional.linear, x, dense),
                "reference int4-g64": partial(reference, short),
                "torch int4-g64": partial(torch_int4, short),
            }
            found += [(key, m, name, microseconds(call)) for name, call in calls.items()]
        yield found
