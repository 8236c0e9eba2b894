"""Other libraries' four-bit linears on random weights, for the benchmark: torch's tinygemm, and gemlite."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kernels.timing import copies_of

Linear = Callable[[Tensor], object]

MOST_ROWS = {"tinygemm": 64, "gemlite": 1024}
"""Above these numbers of rows a rival is left out: it takes milliseconds, or minutes to tune itself."""


def available() -> list[str]:
    """Names of the rivals that can run here."""
    return [name for name in MOST_ROWS if name == "tinygemm" or importlib.util.find_spec(name)]


def make(name: str, rows: int, columns: int, group: int) -> tuple[list[Linear], int]:
    """As many linears [rows, columns] as a rotation takes, and the bytes of one weight."""
    copies = copies_of(rows * columns // 2)
    return (_tinygemm if name == "tinygemm" else _gemlite)(rows, columns, group, copies)


def _multiply(x: Tensor, packed: Tensor, scales: Tensor, group: int) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm(x, packed, group, scales)


def _tinygemm(rows: int, columns: int, group: int, copies: int) -> tuple[list[Linear], int]:
    linears: list[Linear] = []
    for _ in range(copies):
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.rand(columns // group, rows, 2, device="cuda", dtype=torch.bfloat16)
        linears.append(partial(_multiply, packed=packed, scales=scales, group=group))
    return linears, rows * columns // 2 + 4 * rows * (columns // group)


def _gemlite(rows: int, columns: int, group: int, copies: int) -> tuple[list[Linear], int]:
    helper = importlib.import_module("gemlite.helper").A16Wn(device="cuda:0", dtype=torch.bfloat16)
    linears: list[Linear] = []
    for _ in range(copies):
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device="cuda")
        scales = torch.rand(rows, columns // group, device="cuda", dtype=torch.bfloat16)
        zeros = torch.randint(0, 16, scales.shape, device="cuda").to(torch.bfloat16)
        linears.append(helper.from_weights(codes, scales, zeros, 4, group))
    return linears, rows * columns // 2 + 4 * rows * (columns // group)
