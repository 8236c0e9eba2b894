"""Runs the sources of ``kernels.hopper_matmul`` and ``kernels.wide_matmul`` on the CPU, for Triton has no interpreter
of Gluon.

What is asynchronous happens as badly as the kernel's waits allow: copies into shared memory at once, over what has
not been waited for; matrix products and copies out of shared memory only when they are waited for. Layouts mean
nothing here: the compiler sees to them. A wait that nothing ends raises.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels import hopper_matmul, wide_matmul  # type: ignore[attr-defined,unused-ignore]
from kernels.tiles import TiledWeight, _nibble
from kernels.wide import powers

PATIENCE = 20.0
"""Seconds after which a wait is held to be endless."""


class Tensor(np.ndarray):
    """A tile in registers: never changed in place, as in Triton."""

    type = types.SimpleNamespace(layout="layout")

    def __iadd__(self, other: Any) -> Any:
        return self + other

    def to(self, dtype: Any) -> Any:
        return self if dtype == "element" else self.astype(dtype)


def tile(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


class Shared:
    """A piece of shared memory."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def index(self, i: int) -> Any:
        return Shared(self.data[i])

    def slice(self, start: int, length: int) -> Shared:
        return Shared(self.data[start : start + length])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.transpose(order))

    def load(self, layout: Any) -> Tensor:
        return tile(self.data.copy())

    def store(self, value: np.ndarray) -> None:
        assert value.shape == self.data.shape
        self.data[...] = value


class Barrier:
    def __init__(self) -> None:
        self.count = self.left = self.bytes = self.turns = 0
        self.changed = threading.Condition()

    def signal(self, arrivals: int, expected: int) -> None:
        with self.changed:
            self.left -= arrivals
            self.bytes += expected
            assert self.left >= 0, "more arrivals than the barrier waits for"
            if self.left == 0 and self.bytes == 0:
                self.turns, self.left = self.turns + 1, self.count
                self.changed.notify_all()

    def wait(self, parity: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.turns & 1 != parity, PATIENCE):
                raise AssertionError("a wait for a barrier that nothing ends")


class Barriers:
    def __init__(self, count: int) -> None:
        self.all = [Barrier() for _ in range(count)]

    def index(self, i: int) -> Barrier:
        return self.all[i]


class Descriptor:
    """A tensor that the copy engine addresses in blocks."""

    dtype = "element"

    def __init__(self, array: np.ndarray, block: tuple[int, ...]) -> None:
        self.array, self.block = array, block
        self.block_shape = block

    def _inside(self, at: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        ends = [min(max(size - a, 0), b) for a, b, size in zip(at, self.block, self.array.shape, strict=True)]
        there = tuple(slice(a, a + e) for a, e in zip(at, ends, strict=True))
        return there, tuple(slice(0, e) for e in ends)

    def load(self, at: list[int], bar: Barrier, into: Shared) -> None:
        there, here = self._inside(at)
        assert into.data.shape == self.block
        into.data[...] = 0
        into.data[here] = self.array[there]
        # Elements of two bytes are held in four here.
        size = 2 if into.data.dtype == np.float32 else 4
        bar.signal(0, -into.data.size * size)

    def store(self, at: list[int], source: Shared) -> Callable[[], None]:
        there, here = self._inside(at)

        def copy() -> None:
            self.array[there] = source.data[here]

        return copy


class Sum:
    """An accumulator that products are still being added to."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value


class Products:
    """Asynchronous products of matrices: none happens before it is waited for."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], None]] = []

    def multiply(self, a: Tensor, b: Shared, total: Any, use_acc: bool = True, is_async: bool = False) -> Sum:
        into = total if isinstance(total, Sum) else Sum(total)

        def work() -> None:
            into.value = tile((into.value if use_acc else 0) + np.asarray(a) @ b.data)

        self.pending.append(work)
        return into

    def finish(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        while len(self.pending) > outstanding:
            self.pending.pop(0)()
        if not outstanding:
            deps = tuple(dep.value if isinstance(dep, Sum) else dep for dep in deps)
        return deps if len(deps) > 1 else deps[0]


class Memory:
    """Flat memory behind a pointer; a pointer plus indices is what is loaded from or stored to."""

    def __init__(self, array: np.ndarray, at: Any = 0) -> None:
        self.array, self.at = array, at

    def __add__(self, offset: Any) -> Memory:
        return Memory(self.array, self.at + offset)


def decode_half_of(format: int) -> Callable[..., list[Tensor]]:  # noqa: A002
    """``kernels.decode.decode_half`` in numpy; NVFP4 a 256th of its value, as REST has it for bfloat16."""
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

    def decode_half(words: np.ndarray, *rest: Any) -> list[Tensor]:
        found = []
        for i, scales in enumerate(rest[:4], 4 * rest[4]):
            nibble = np.asarray(_nibble(torch.from_numpy(np.asarray(words)), i, bool(format)))
            word = torch.from_numpy(np.asarray(scales))
            if format:
                byte = np.asarray(word >> 8 * (i % 4) & 0xFF).astype(np.float32)
                exponent = np.floor(byte / 8)
                value = e2m1[nibble] * np.ldexp(8 + byte - 8 * exponent, (exponent - 13).astype(int)) / 256
            else:
                scale = np.asarray((word << 16).view(torch.float32))
                offset = np.asarray((word >> 16).to(torch.int16).view(torch.bfloat16).float())
                value = (nibble + (offset + 128)) * scale
                value = np.asarray(torch.from_numpy(value).bfloat16().float())
            found.append(tile(value))
        return found

    return decode_half


KERNELS = (hopper_matmul, wide_matmul)
"""The second calls functions of the first."""


def source(module: Any) -> str:
    """A kernel's functions as they are written."""
    text = Path(str(module.__file__)).read_text()
    return text[text.index("@gluon.jit") :]


class Emulator:
    """One program of a launch, its two kinds of warps as two threads."""

    def __init__(self, program: int, programs: int, format: int) -> None:  # noqa: A002
        self.products = Products()
        self.stores: list[Callable[[], None]] = []
        cuda = types.SimpleNamespace(gdc_wait=lambda: None, gdc_launch_dependents=lambda: None)
        gl = types.SimpleNamespace(
            constexpr=lambda value: value, float32=np.float32, int32=np.int32, int64=np.int64,
            num_warps=lambda: 8, program_id=lambda axis: program, num_programs=lambda axis: programs,
            DotOperandLayout=lambda *a: "layout", SliceLayout=lambda *a: "layout",
            NVMMADistributedLayout=lambda *a: "layout", DistributedLinearLayout=lambda *a: "layout", exp=np.exp,
            static_range=range, minimum=np.minimum,
            reshape=lambda value, shape: tile(np.reshape(value, shape)),
            permute=lambda value, order: tile(np.transpose(value, order)),
            split=lambda value: (value[..., 0], value[..., 1]),
            convert_layout=lambda value, layout, assert_trivial=False: value,
            where=lambda condition, a, b: a if condition else b,
            cdiv=lambda a, b: -(-a // b), cast=lambda value, dtype: value,
            allocate_shared_memory=self.allocate, expand_dims=self.expand,
            zeros=lambda shape, dtype, layout: tile(np.zeros(shape, dtype)),
            arange=lambda a, b, layout: tile(np.arange(a, b)), load=self.load, store=self.store,
            atomic_add=self.add, warp_specialize=self.specialize,
        )  # fmt: skip
        mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barrier", init=self.init, wait=lambda bar, parity: bar.wait(parity),
            expect=lambda bar, size: bar.signal(1, size),
            arrive=lambda bar, count, pred=True: bar.signal(count, 0) if pred else None,
        )  # fmt: skip
        self.names = {
            "tl": types.SimpleNamespace(extra=types.SimpleNamespace(cuda=cuda)), "gl": gl,
            "gluon": types.SimpleNamespace(jit=lambda fn=None, **options: fn if fn else lambda f: f),
            "mbarrier": mbarrier, "tma": types.SimpleNamespace(store_wait=self.store_wait), "barrier": lambda: None,
            "copy": lambda desc, at, bar, into: desc.load(at, bar, into),
            "send": lambda desc, at, source: self.stores.append(desc.store(at, source)),
            "SHARED_X": None, "SHARED_CODES": None, "SHARED_SCALES": None,
            "fence_async_shared": lambda: None, "INT4": 0,
            "warpgroup_mma": self.products.multiply, "warpgroup_mma_wait": self.products.finish,
            "decode_half": decode_half_of(format),
        }  # fmt: skip
        for module in KERNELS:
            # Each in names of its own: both have functions of the same name.
            self.names = dict(self.names)
            exec(compile(source(module), str(module.__file__), "exec"), self.names)

    def allocate(self, dtype: Any, shape: list[int], layout: Any) -> Any:
        if layout == "barrier":
            return Barriers(shape[0])
        return Shared(
            np.full(shape, np.nan if dtype == "element" else -1, np.float32 if dtype == "element" else dtype)
        )

    def init(self, bar: Barrier, count: int) -> None:
        bar.count = bar.left = count

    def expand(self, value: Tensor, axis: int) -> Tensor:
        return tile(np.expand_dims(value, axis))

    def load(self, pointer: Memory, cache_modifier: str = "") -> Tensor:
        return tile(pointer.array[np.asarray(pointer.at)])

    def store(self, pointer: Memory, value: Any) -> None:
        pointer.array[np.asarray(pointer.at)] = value

    def add(self, pointer: Memory, value: int, sem: str, scope: str) -> int:
        before = int(pointer.array[pointer.at])
        pointer.array[pointer.at] += value
        return before

    def store_wait(self, pendings: int) -> None:
        while len(self.stores) > pendings:
            self.stores.pop(0)()

    def specialize(
        self, functions: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]
    ) -> None:
        failures: list[BaseException] = []

        def produce() -> None:
            try:
                functions[1][0](*functions[1][1])
            except BaseException as error:
                failures.append(error)

        producer = threading.Thread(target=produce, daemon=True)
        producer.start()
        functions[0][0](*functions[0][1])
        producer.join(PATIENCE)
        assert not producer.is_alive() and not failures, failures


def run(
    x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, block_m: int, block_n: int, stages: int,
    splits: int, programs: int,
) -> torch.Tensor:  # fmt: skip
    """``x W^T + bias`` float32 by as many ``programs`` in turn, arguments as ``launch_hopper`` makes them."""
    m, n, k = x.shape[0], weight.rows, weight.columns
    floats = weight.factors is not None
    out = np.full((m, n), np.nan, np.float32)
    tiles = -(-m // block_m) * -(-n // block_n)
    steps = -(-k // 128)
    splits = -(-steps // -(-steps // splits))
    programs = min(programs, tiles * splits)
    partial = Memory(np.full(tiles * splits * block_m * block_n, np.nan, np.float32))
    tickets = Memory(weight.tickets.numpy())
    factors = Memory((weight.factors if weight.factors is not None else torch.ones(n)).numpy())
    for program in range(programs):
        emulator = Emulator(program, programs, int(floats))
        emulator.names["hopper_matmul"](
            Descriptor(x.float().numpy(), (block_m, 128)),
            Descriptor(weight.codes.reshape(-1, 16).numpy(), (block_n, 16)),
            Descriptor(weight.scales.reshape(-1).numpy(), (block_n,)),
            Descriptor(out, (block_m, block_n)),
            factors, Memory(np.zeros(n, np.float32) if bias is None else bias.float().numpy()), partial, tickets,
            m, n, k, splits, GROUP=weight.group, FORMAT=int(floats), REST=256.0 if floats else 1.0,
            BIAS=bias is not None, SPLIT=splits > 1, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
        )  # fmt: skip
        assert not emulator.products.pending and not emulator.stores
    return torch.from_numpy(out)


def run_wide(
    x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, block_m: int, block_n: int, stages: int,
    programs: int, gated: bool = False,
) -> torch.Tensor:  # fmt: skip
    """As ``run``, by ``wide_matmul``, arguments as ``launch_wide`` makes them."""
    m, n, k = x.shape[0], weight.rows, weight.columns
    floats = weight.factors is not None
    width, columns = n // (1 + gated), block_n // (1 + gated)
    out = np.full((m, width), np.nan, np.float32)
    most, more = powers(block_m)
    programs = min(programs, -(-m // block_m) * -(-width // columns))
    factors = Memory((weight.factors if weight.factors is not None else torch.ones(n)).numpy())
    for program in range(programs):
        emulator = Emulator(program, programs, int(floats))
        emulator.names["wide_matmul"](
            Descriptor(x.float().numpy(), (most, 64)),
            Descriptor(x.float().numpy(), (more or most, 64)),
            Descriptor(weight.codes.reshape(-1, 16).numpy(), (columns, 16)),
            Descriptor(weight.scales.reshape(-1).numpy(), (columns,)),
            Descriptor(out, (more or most // 2, columns)), factors,
            Memory(np.zeros(n, np.float32) if bias is None else bias.float().numpy()),
            m, n, k, GROUP=weight.group, FORMAT=int(floats), REST=256.0 if floats else 1.0, BIAS=bias is not None,
            BLOCK_M=most, MORE=more, BLOCK_N=block_n, STAGES=-(-stages // 2), X_STAGES=stages, SWIGLU=gated,
        )  # fmt: skip
        assert not emulator.products.pending and not emulator.stores
    return torch.from_numpy(out)
