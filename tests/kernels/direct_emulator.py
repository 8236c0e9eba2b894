"""Runs the source of ``kernels.direct_matmul`` on the CPU, for Triton has no interpreter of Gluon.

Layouts mean nothing here: the compiler sees to them. What is read or written beside a tensor raises.
"""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gluon_emulator import Memory, Tensor, decode_half_of

from kernels import direct_matmul as module  # type: ignore[attr-defined,unused-ignore]
from kernels.config import Config
from kernels.device_tiles import rows_at
from kernels.direct import division
from kernels.tiles import TiledWeight


class Values(Tensor):
    """A tile in registers, as this kernel handles them."""

    type = types.SimpleNamespace(layout=None)

    def permute(self, *order: int) -> Any:
        return self.transpose(*order)

    def broadcast_to(self, *shape: int) -> Any:
        return np.broadcast_to(self, shape, subok=True)

    def to(self, dtype: Any) -> Any:
        return self if dtype == "element" else self.astype(dtype)


def values(array: Any) -> Values:
    return np.asarray(array).view(Values)


class Pointer(Memory):
    """Flat memory behind a pointer, none of it before or behind the tensor."""

    dtype = types.SimpleNamespace(element_ty="element")

    @property
    def shape(self) -> tuple[int, ...]:
        return np.asarray(self.at).shape

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.at + offset)

    def places(self, mask: Any) -> tuple[Any, Any]:
        at = np.asarray(self.at)
        there = np.broadcast_to(True if mask is None else np.asarray(mask), at.shape)
        used = at[there]
        assert not used.size or (used.min() >= 0 and used.max() < self.array.size), "beside the tensor"
        return np.where(there, at, 0), there


class Shared:
    """A piece of shared memory."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.dtype = data, "element"

    def reinterpret(self, dtype: Any, shape: list[int], layout: Any) -> Shared:
        return Shared(self.data.reshape(shape))

    def index(self, i: int) -> Shared:
        return Shared(self.data[i])

    def load(self, layout: Any) -> Values:
        return values(self.data.copy())

    def store(self, value: np.ndarray) -> None:
        assert value.shape == self.data.shape
        self.data[...] = value


def _load(pointer: Pointer, mask: Any = None, other: float | None = None, cache_modifier: str = "") -> Values:
    at, there = pointer.places(mask)
    return values(np.where(there, pointer.array[at], other if other is not None else 0))


def _store(pointer: Pointer, value: Any, mask: Any = None) -> None:
    at, there = pointer.places(mask)
    pointer.array[at[there]] = np.broadcast_to(value, at.shape)[there]


def _add(pointer: Pointer, value: int, sem: str, scope: str) -> int:
    before = int(pointer.array[pointer.at])
    pointer.array[pointer.at] += value
    return before


def _names(program: tuple[int, ...], grid: tuple[int, ...], warps: int, floats: bool) -> dict[str, Any]:
    anything = lambda *given: None  # noqa: E731
    half = decode_half_of(int(floats))
    gl = types.SimpleNamespace(
        constexpr=lambda value: value, float32=np.float32, int32=np.int32, int64=np.int64,
        num_warps=lambda: warps, program_id=lambda axis: program[axis], num_programs=lambda axis: grid[axis],
        DistributedLinearLayout=anything, SliceLayout=anything, BlockedLayout=anything, DotOperandLayout=anything,
        NVMMADistributedLayout=anything, SwizzledSharedLayout=anything, static_range=range,
        shared_memory_descriptor=Shared, minimum=np.minimum, cdiv=lambda a, b: -(-a // b),
        cast=lambda value, dtype: value, arange=lambda a, b, layout: values(np.arange(a, b)),
        zeros=lambda shape, dtype, layout: values(np.zeros(shape, dtype)), load=_load, store=_store, atomic_add=_add,
        reshape=lambda value, shape: value.reshape(shape), convert_layout=lambda value, layout, assert_trivial: value,
        expand_dims=lambda value, axis: values(np.expand_dims(value, axis)), sum=lambda value, axis: value.sum(axis),
        exp=np.exp, split=lambda value: (value[..., 0], value[..., 1]), inline_asm_elementwise=lambda *a, **k: None,
        allocate_shared_memory=lambda dtype, shape, layout: Shared(np.full(shape, np.nan, np.float32)),
        barrier=lambda: None,
    )  # fmt: skip
    cuda = types.SimpleNamespace(gdc_wait=lambda: None, gdc_launch_dependents=lambda: None)
    return {
        "tl": types.SimpleNamespace(
            extra=types.SimpleNamespace(cuda=cuda), minimum=np.minimum, constexpr=gl.constexpr
        ),
        "triton": types.SimpleNamespace(jit=lambda fn: fn), "gl": gl, "INT4": 0,
        "gluon": types.SimpleNamespace(
            jit=lambda fn=None, **options: fn if fn else lambda f: f, constexpr_function=lambda fn: fn
        ),
        "mma_v2": lambda a, b, total: values(total + np.asarray(a) @ np.asarray(b)),
        "decode": lambda words, *rest: list(map(values, half(words, *rest[:4], 0) + half(words, *rest[4:8], 1))),
    }  # fmt: skip


def run(
    x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, config: Config, gated: bool
) -> torch.Tensor:
    """``x W^T + bias`` float32, or its halves gated; the grid and the constants as ``launch_direct`` makes them."""
    text = Path(str(module.__file__)).read_text()
    text = inspect.getsource(rows_at.fn) + text[text.index("# Triton 3.9 knows these") :]
    m, n, k = x.shape[0], weight.rows, weight.columns
    floats = weight.factors is not None
    split = division(weight, config, gated, m)
    width = n // 2 if gated else n
    out = np.full(m * width, np.nan, np.float32)
    partial = np.full(
        max(1, split.grid[0] * split.grid[1] * split.grid[2] * config.block_n * config.block_m),
        np.nan,
        np.float32,
    )
    pointers = [
        x.float().numpy().reshape(-1), weight.codes.numpy().reshape(-1), weight.scales.numpy().reshape(-1),
        (weight.factors if weight.factors is not None else torch.ones(n)).numpy(),
        np.zeros(n, np.float32) if bias is None else bias.float().numpy(), out, partial, weight.tickets.numpy(),
    ]  # fmt: skip
    for program in np.ndindex(*split.grid):
        names = _names(program, split.grid, config.warps, floats)
        exec(compile(text, str(module.__file__), "exec"), names)
        names["direct_matmul"](
            *map(Pointer, pointers), m, n, k, split.grid[2], split.share, x.stride(0), width,
            GROUP=weight.group, FORMAT=int(floats), REST=256.0 if floats else 1.0, BIAS=bias is not None,
            SWIGLU=gated, BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCKS=config.blocks, ONE=m == 1,
            OVERLAP=True, **split.constants,
        )  # fmt: skip
    return torch.from_numpy(out.reshape(m, width))
