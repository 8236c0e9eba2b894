"""Runs a kernel written in Gluon on the CPU, from its source and by its real launch: Triton has no interpreter of it.

What is asynchronous happens as badly as the kernel's waits allow: a copy into shared memory lands at once, over what
was there, or only when it is waited for, garbage until then; what a program stores is there for its other threads, and
for other programs once a ticket is drawn, only after its threads have met. Layouts mean nothing here: the compiler
sees to them. What is read or written beside a tensor raises, and what the kernel before may still be writing, before
it has ended.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gluon_emulator
import numpy as np
import torch
from gluon_emulator import Memory, Tensor, decode_half_of
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.device_tiles import rows_at
from kernels.tiles import TiledWeight

LATE = {"x_ptr", "out_ptr", "partial_ptr", "ticket_ptr"}
"""What the kernel before may have to do with: everything but the weight."""


class Values(Tensor):
    """A tile in registers."""

    type = types.SimpleNamespace(layout=None)

    def permute(self, *order: int) -> Any:
        return self.transpose(*order)

    def broadcast_to(self, *shape: int) -> Any:
        return np.broadcast_to(self, shape, subok=True)


def values(array: Any) -> Values:
    return np.asarray(array).view(Values)


class Pointer(Memory):
    """Flat memory behind a pointer, none of it before or behind the tensor."""

    dtype = types.SimpleNamespace(element_ty="element")

    def __init__(self, array: np.ndarray, ended: Callable[[], bool], shared: bool, at: Any = 0) -> None:
        super().__init__(array, at)
        self.ended = ended
        self.shared = shared
        """Whether other programs of the launch write here what this one reads."""

    @property
    def shape(self) -> tuple[int, ...]:
        return np.asarray(self.at).shape

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.ended, self.shared, self.at + offset)

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
    """Copies that signal it land at once or one by one as it is waited for, until the wait is over."""

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

    def __init__(self, made: TensorDescriptor, ended: Callable[[], bool], late: bool) -> None:
        array = torch.as_strided(made.base, made.shape, made.strides)
        super().__init__(np.asarray(array.float()), tuple(made.block_shape))
        self.ended, self.late = ended, late

    def copy(self, at: list[int], bar: Barrier, into: Shared) -> None:
        assert self.ended(), "the kernel before may not have ended"
        assert bar.known, "the copy engine may not know the barrier yet"
        bar.copies.append(lambda: self.load(at, bar, into))
        if not self.late:
            bar.copies.pop(0)()


class Program:
    """One program of a launch."""

    def __init__(
        self, place: tuple[int, ...], grid: tuple[int, ...], warps: int, floats: bool, late: bool
    ) -> None:
        self.ended = False
        self.late = late
        self.barriers: list[Barrier] = []
        # What is on its way to memory: since the threads met last, and before.
        self.fresh: list[Callable[[], None]] = []
        self.met: list[Callable[[], None]] = []
        anything = lambda *given: None  # noqa: E731
        half = decode_half_of(int(floats))

        def decode_half(*given: Any) -> tuple[Values, ...]:
            return tuple(map(values, half(*given)))

        def decode(words: Any, *rest: Any) -> tuple[Values, ...]:
            return decode_half(words, *rest[:4], 0, *rest[8:]) + decode_half(words, *rest[4:8], 1, *rest[8:])

        gl = types.SimpleNamespace(
            constexpr=lambda value: value, float32=np.float32, int32=np.int32, int64=np.int64,
            num_warps=lambda: warps, program_id=lambda axis: place[axis], num_programs=lambda axis: grid[axis],
            DistributedLinearLayout=anything, SliceLayout=anything, BlockedLayout=anything,
            DotOperandLayout=anything, NVMMADistributedLayout=anything, SwizzledSharedLayout=anything,
            NVMMASharedLayout=anything, static_range=range, shared_memory_descriptor=Shared,
            minimum=np.minimum, cdiv=lambda a, b: -(-a // b),
            cast=lambda value, dtype: value, arange=lambda a, b, layout: values(np.arange(a, b)),
            zeros=lambda shape, dtype, layout: values(np.zeros(shape, dtype)),
            load=self.load, store=self.store, atomic_add=self.add,
            reshape=lambda value, shape: value.reshape(shape),
            convert_layout=lambda value, layout, assert_trivial=False: value,
            expand_dims=lambda value, axis: values(np.expand_dims(value, axis)),
            sum=lambda value, axis: value.sum(axis), exp=np.exp,
            rsqrt=lambda value: 1 / np.sqrt(value), split=lambda value: (value[..., 0], value[..., 1]),
            inline_asm_elementwise=lambda asm, constraints, given, **options: given[0],
            allocate_shared_memory=self.allocate,
        )  # fmt: skip
        cuda = types.SimpleNamespace(gdc_wait=self.end, gdc_launch_dependents=lambda: None)
        mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barrier", init=self.init, wait=lambda bar, parity: bar.wait(parity),
            expect=lambda bar, size: bar.signal(1, size),
        )  # fmt: skip
        self.names: dict[str, Any] = {
            "tl": types.SimpleNamespace(
                extra=types.SimpleNamespace(cuda=cuda), minimum=np.minimum, constexpr=gl.constexpr
            ),
            "triton": types.SimpleNamespace(jit=lambda fn: fn), "gl": gl, "INT4": 0, "mbarrier": mbarrier,
            "gluon": types.SimpleNamespace(
                jit=lambda fn=None, **options: fn if fn else lambda f: f, constexpr_function=lambda fn: fn
            ),
            "copy": lambda desc, *rest: desc.copy(*rest), "fence_async_shared": self.fence, "barrier": self.meet,
            "mma_v2": lambda a, b, total: values(total + np.asarray(a) @ np.asarray(b)),
            "decode": decode, "decode_half": decode_half,
        }  # fmt: skip

    def run(self, kernel: str, *modules: types.ModuleType, **arguments: Any) -> None:
        exec(_code(*modules), self.names)
        self.names[kernel](**arguments)
        for bar in self.barriers:
            assert not bar.copies and not bar.bytes, "a copy that nothing has waited for"
        self.meet()
        self.settle()

    def end(self) -> None:
        self.ended = True

    def meet(self) -> None:
        self.met += self.fresh
        self.fresh = []

    def settle(self) -> None:
        while self.met:
            self.met.pop(0)()

    def allocate(self, dtype: Any, shape: list[int], layout: Any, value: Any = None) -> Any:
        if layout == "barrier":
            self.barriers.append(Barrier())
            return self.barriers[-1]
        piece = Shared(np.full(shape, np.nan, np.float32))
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
        assert cache_modifier == ".cg" or not pointer.shared, "the L1 cache may have what was there before"
        at, there = pointer.places(mask)
        return values(np.where(there, pointer.array[at], other if other is not None else 0))

    def store(self, pointer: Pointer, value: Any, mask: Any = None) -> None:
        at, there = pointer.places(mask)
        stored = np.broadcast_to(value, at.shape)[there]

        def land() -> None:
            pointer.array[at[there]] = stored

        self.fresh.append(land)

    def add(self, pointer: Pointer, value: int, sem: str, scope: str) -> int:
        assert (sem, scope) == ("acq_rel", "gpu")
        self.settle()
        at, _ = pointer.places(None)
        before = int(pointer.array[at])
        pointer.array[at] += value
        return before


@cache
def _code(*modules: types.ModuleType) -> types.CodeType:
    """What ``modules`` define and what they take from elsewhere, as it is written."""
    texts = [inspect.getsource(rows_at.fn), *(Path(str(found.__file__)).read_text() for found in modules)]
    lines = [line for text in texts for line in ast.parse(text).body]
    lines = [line for line in lines if not isinstance(line, ast.Import | ast.ImportFrom)]
    return compile(ast.Module(lines, []), str(modules[-1].__file__), "exec")


class Launched:
    """Stands in for the compiled kernel of the last of ``modules``: its programs run in turn.

    A tile's parts of K come in between those of others. ``late``: copies land late, and the programs run from the first
    to the last; otherwise at once, and from the last.
    """

    program: type[Program] = Program

    def __init__(self, kernel: str, weight: TiledWeight, late: bool, *modules: types.ModuleType) -> None:
        self.kernel, self.modules, self.late = kernel, modules, late
        self.floats = weight.factors is not None
        self.names = getattr(modules[-1], kernel).arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, num_warps: int, launch_pdl: bool, maxnreg: int = 0, **constants: Any) -> None:
            for place in sorted(np.ndindex(*grid), key=lambda place: place[::-1], reverse=not self.late):
                program = self.program(place, grid, num_warps, self.floats, self.late)
                arguments = {
                    name: self.argument(name, value, program)
                    for name, value in zip(self.names[: len(given)], given, strict=True)
                }
                program.run(self.kernel, *self.modules, **arguments, **constants)

        return launch

    def argument(self, name: str, value: Any, program: Program) -> Any:
        if isinstance(value, TensorDescriptor):
            return Descriptor(value, lambda: program.ended, self.late)
        if not isinstance(value, torch.Tensor):
            return value
        ended = (lambda: program.ended) if name in LATE else lambda: True
        # Elements of two bytes are held in four here.
        array = (value.float() if value.is_floating_point() else value).numpy()
        return Pointer(array.reshape(-1), ended, name == "partial_ptr")


def unwritten(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """In place of ``torch.empty``."""
    return torch.full((size,), torch.nan, dtype=dtype)
