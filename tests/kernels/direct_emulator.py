"""Runs the source of ``kernels.direct_matmul`` on the CPU, for Triton has no interpreter of Gluon.

What is asynchronous happens as badly as the kernel's waits allow: a copy into shared memory lands when it is waited
for, and no sooner than the wait takes; until then garbage lies there. Layouts mean nothing here: the compiler sees to
them. What is read or written beside a tensor raises, and what the kernel before may still be writing, before it has
ended.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import gluon_emulator
import numpy as np
import torch
from gluon_emulator import Memory, Tensor, decode_half_of
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import direct, few_rows
from kernels import direct_matmul as module  # type: ignore[attr-defined,unused-ignore]
from kernels.config import Config
from kernels.device_tiles import rows_at
from kernels.tiles import TiledWeight

LATE = {"x_ptr", "out_ptr", "partial_ptr", "ticket_ptr"}
"""What the kernel before may have to do with: everything but the weight."""


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

    def __init__(self, array: np.ndarray, ended: Callable[[], bool], at: Any = 0) -> None:
        super().__init__(array, at)
        self.ended = ended

    @property
    def shape(self) -> tuple[int, ...]:
        return np.asarray(self.at).shape

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.ended, self.at + offset)

    def places(self, mask: Any) -> tuple[Any, Any]:
        assert self.ended(), "the kernel before may not have ended"
        at = np.asarray(self.at)
        there = np.broadcast_to(True if mask is None else np.asarray(mask), at.shape)
        used = at[there]
        assert not used.size or (used.min() >= 0 and used.max() < self.array.size), "beside the tensor"
        return np.where(there, at, 0), there


class Shared(gluon_emulator.Shared):
    """A piece of shared memory."""

    dtype = "element"

    def reinterpret(self, dtype: Any, shape: list[int], layout: Any) -> Shared:
        return Shared(self.data.reshape(shape))

    def index(self, i: int) -> Shared:
        return Shared(self.data[i])

    def load(self, layout: Any) -> Values:
        return values(self.data.copy())


class Barrier(gluon_emulator.Barrier):
    """Copies that signal it land one by one as it is waited for, until the wait is over."""

    def __init__(self) -> None:
        super().__init__()
        self.known = False
        self.copies: list[Callable[[], None]] = []

    def wait(self, parity: int) -> None:
        while self.copies and self.turns & 1 == parity:
            self.copies.pop(0)()
        assert self.turns & 1 != parity, "a wait for a barrier that nothing ends"


class Descriptor(gluon_emulator.Descriptor):
    """A tensor that the copy engine addresses in blocks."""

    def __init__(self, made: TensorDescriptor) -> None:
        array = torch.as_strided(made.base, made.shape, made.strides).numpy()
        super().__init__(array, tuple(made.block_shape))
        self.block_shape, self.layout = made.block_shape, None
        # A swizzled layout is made of pieces of eight rows.
        assert not made.layout.swizzle_byte_width or np.prod(self.block[:-1]) >= 8

    def copy(self, at: list[int], bar: Barrier, into: Shared) -> None:
        assert bar.known, "the copy engine may not know the barrier yet"
        bar.copies.append(lambda: self.load(at, bar, into))


class Program:
    """One program of a launch."""

    def __init__(self, place: tuple[int, ...], grid: tuple[int, ...], warps: int, floats: bool) -> None:
        self.ended = False
        self.barriers: list[Barrier] = []
        anything = lambda *given: None  # noqa: E731
        half = decode_half_of(int(floats))
        gl = types.SimpleNamespace(
            constexpr=lambda value: value, float32=np.float32, int32=np.int32, int64=np.int64,
            num_warps=lambda: warps, program_id=lambda axis: place[axis], num_programs=lambda axis: grid[axis],
            DistributedLinearLayout=anything, SliceLayout=anything, BlockedLayout=anything,
            DotOperandLayout=anything, NVMMADistributedLayout=anything, SwizzledSharedLayout=anything,
            static_range=range, shared_memory_descriptor=Shared, minimum=np.minimum, cdiv=lambda a, b: -(-a // b),
            cast=lambda value, dtype: value, arange=lambda a, b, layout: values(np.arange(a, b)),
            zeros=lambda shape, dtype, layout: values(np.zeros(shape, dtype)),
            load=self.load, store=self.store, atomic_add=self.add,
            reshape=lambda value, shape: value.reshape(shape),
            convert_layout=lambda value, layout, assert_trivial: value,
            expand_dims=lambda value, axis: values(np.expand_dims(value, axis)),
            sum=lambda value, axis: value.sum(axis), exp=np.exp, split=lambda value: (value[..., 0], value[..., 1]),
            inline_asm_elementwise=lambda *a, **k: None, allocate_shared_memory=self.allocate, barrier=lambda: None,
        )  # fmt: skip
        cuda = types.SimpleNamespace(gdc_wait=self.end, gdc_launch_dependents=lambda: None)
        mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barrier", init=self.init, wait=lambda bar, parity: bar.wait(parity),
            expect=lambda bar, size: bar.signal(1, size),
        )  # fmt: skip
        self.names = {
            "tl": types.SimpleNamespace(
                extra=types.SimpleNamespace(cuda=cuda), minimum=np.minimum, constexpr=gl.constexpr
            ),
            "triton": types.SimpleNamespace(jit=lambda fn: fn), "gl": gl, "INT4": 0, "mbarrier": mbarrier,
            "tma": types.SimpleNamespace(async_load=lambda desc, *rest: desc.copy(*rest)),
            "fence_async_shared": self.fence,
            "gluon": types.SimpleNamespace(
                jit=lambda fn=None, **options: fn if fn else lambda f: f, constexpr_function=lambda fn: fn
            ),
            "mma_v2": lambda a, b, total: values(total + np.asarray(a) @ np.asarray(b)),
            "decode_half": lambda *given: tuple(map(values, half(*given))),
        }  # fmt: skip
        exec(_code(), self.names)

    def end(self) -> None:
        self.ended = True

    def allocate(self, dtype: Any, shape: list[int], layout: Any, value: Any = None) -> Any:
        if layout == "barrier":
            self.barriers.append(Barrier())
            return self.barriers[-1]
        # As a word, minus one has scales that are no numbers or the largest.
        garbage = np.full(shape, -1, np.int32) if dtype == np.int32 else np.full(shape, np.nan, np.float32)
        piece = Shared(garbage)
        if value is not None:
            piece.store(value)
        return piece

    def init(self, bar: Barrier, count: int) -> None:
        bar.count = bar.left = count

    def fence(self) -> None:
        for bar in self.barriers:
            bar.known = bar.count > 0

    def load(
        self, pointer: Pointer, mask: Any = None, other: float | None = None, cache_modifier: str = ""
    ) -> Values:
        at, there = pointer.places(mask)
        return values(np.where(there, pointer.array[at], other if other is not None else 0))

    def store(self, pointer: Pointer, value: Any, mask: Any = None) -> None:
        at, there = pointer.places(mask)
        pointer.array[at[there]] = np.broadcast_to(value, at.shape)[there]

    def add(self, pointer: Pointer, value: int, sem: str, scope: str) -> int:
        at, _ = pointer.places(None)
        before = int(pointer.array[at])
        pointer.array[at] += value
        return before


@cache
def _code() -> types.CodeType:
    """The kernel's functions and those it takes from elsewhere, as they are written."""
    texts = [inspect.getsource(rows_at.fn)]
    texts += [Path(str(found.__file__)).read_text() for found in (few_rows, module)]
    lines = [line for text in texts for line in ast.parse(text).body]
    lines = [line for line in lines if not isinstance(line, ast.Import | ast.ImportFrom)]
    return compile(ast.Module(lines, []), str(module.__file__), "exec")


class Launched:
    """Stands in for the compiled kernel: its programs run in turn."""

    def __init__(self, weight: TiledWeight) -> None:
        self.floats = weight.factors is not None
        self.names = module.direct_matmul.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, num_warps: int, launch_pdl: bool, maxnreg: int = 0, **constants: Any) -> None:
            for place in np.ndindex(*grid):
                program = Program(place, grid, num_warps, self.floats)
                arguments = {
                    name: self.argument(name, value, program)
                    for name, value in zip(self.names[: len(given)], given, strict=True)
                }
                program.names["direct_matmul"](**arguments, **constants)
                for bar in program.barriers:
                    assert not bar.copies and not bar.bytes, "a copy that nothing has waited for"

        return launch

    def argument(self, name: str, value: Any, program: Program) -> Any:
        if isinstance(value, TensorDescriptor):
            return Descriptor(value)
        if not isinstance(value, torch.Tensor):
            return value
        ended = (lambda: program.ended) if name in LATE else lambda: True
        # Elements of two bytes are held in four here.
        array = (value.float() if value.is_floating_point() else value).numpy()
        return Pointer(array.reshape(-1), ended)


def run(
    x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, config: Config, gated: bool
) -> torch.Tensor:
    """``x W^T + bias`` float32, or its halves gated; launched as on a GPU that can do everything."""
    out = torch.full((x.shape[0], weight.rows // (1 + gated)), torch.nan)
    unwritten = lambda size, dtype, device: torch.full((size,), torch.nan, dtype=dtype)  # noqa: E731
    with (
        mock.patch.object(module, "direct_matmul", Launched(weight)),
        mock.patch.object(direct, "copies", lambda device: True),
        mock.patch.object(direct, "overlaps", lambda device: True),
        mock.patch.object(torch, "empty", unwritten),
    ):
        return direct.launch_direct(x, weight, bias, config, gated, out)
