"""Speed of the quantized linears beside bf16 and other libraries: ``python -m kernels.benchmark``.

All full-size linears and numbers of rows, against cuBLAS in bfloat16, torch's tinygemm and gemlite in the same
process: CUDA-graph replays, medians, weights rotating through more than the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kernels import rivals
from kernels.config import Config, choose
from kernels.fp8 import fp8_linear, quantize_weight
from kernels.linear import gates, linear, linear_swiglu
from kernels.tiles import TiledWeight
from kernels.timing import (
    ROWS,
    SHAPES,
    compare,
    copies_of,
    random_rows,
    random_tiles,
    read_bandwidth,
)


@dataclass(frozen=True)
class Row:
    """One timing: ``gigabytes`` a second counts the weight once, ``share`` is of the measured read bandwidth,
    ``against_bf16`` is the bf16 time over this one.
    """

    linear: str
    m: int
    implementation: str
    microseconds: float
    gigabytes: float
    share: float
    against_bf16: float
    how: str


def measure(
    formats: Sequence[str],
    others: Sequence[str] = ("tinygemm",),
    ms: Sequence[int] = ROWS,
    group: int = 64,
) -> Iterator[list[Row]]:
    """Time every linear; yields the rows of one linear at a time.

    Args:
        formats: of ``TiledWeight.format``, or ``fp8``: weights and activations, as ``kernels.fp8`` has it.
        others: names from ``kernels.rivals``.
        ms: numbers of rows of activations.
        group: columns that share a scale in the rivals' weights.
    """
    peak = read_bandwidth()
    for key in SHAPES:
        contenders = _contenders(key, formats, others, ms, group)
        rows = []
        for m in ms:
            some = [contender for contender in contenders if contender.fits(m)]
            x = random_rows(m, SHAPES[key][1])
            taken = compare([contender.calls(x) for contender in some], 15 if m < 1024 else 7)
            for contender, each in zip(some, taken, strict=True):
                rate = contender.nbytes / each / 1e3
                rows.append(Row(key, m, contender.name, round(each, 2), round(rate, 1),
                                round(rate * 1e9 / peak, 3), round(taken[0] / each, 2), contender.how(m)))  # fmt: skip
        yield rows


@dataclass(frozen=True)
class _Contender:
    """An implementation of one linear: as many of it as a rotation takes, each called with the activations."""

    name: str
    nbytes: int
    linears: Sequence[Callable[[Tensor], object]]
    how: Callable[[int], str]
    most_rows: int

    def fits(self, m: int) -> bool:
        return m <= self.most_rows

    def calls(self, x: Tensor) -> list[Callable[[], object]]:
        return [partial(linear, x) for linear in self.linears]


def _contenders(
    key: str, formats: Sequence[str], others: Sequence[str], ms: Sequence[int], group: int
) -> list[_Contender]:
    """All that ``measure`` compares for a linear; cuBLAS is the first."""
    rows, columns = SHAPES[key]
    name = torch.cuda.get_device_name()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    copies = copies_of(2 * rows * columns)
    dense = [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    multiply = [partial(torch.nn.functional.linear, weight=weight) for weight in dense]
    found = [_Contender("bf16", dense[0].nbytes, multiply, lambda m: "cublas", max(ms))]
    for other in others:
        linears, nbytes = rivals.make(other, rows, columns, group)
        found.append(
            _Contender(f"{other} int4-g{group}", nbytes, linears, lambda m: "", rivals.MOST_ROWS[other])
        )
    for format in formats:  # noqa: A001
        if format == "fp8":
            stored = [quantize_weight(weight) for weight in dense]
            calls = [partial(fp8_linear, weight=weight) for weight in stored]
            found.append(_Contender("fp8", stored[0].nbytes, calls, lambda m: "weights and rows", max(ms)))
            continue
        weights = random_tiles(format, rows, columns, 1)
        nbytes = weights[0].nbytes
        weights = random_tiles(format, rows, columns, copies_of(nbytes))

        def config(m: int, gated: bool = False, format: str = format) -> Config:  # noqa: A002
            return choose(name, processors, format, rows, columns, m, gated)

        plain = [partial(linear, weight=weight) for weight in weights]
        found.append(_Contender(format, nbytes, plain, lambda m, c=config: c(m).label, max(ms)))  # type: ignore[misc]
        if key == "gate_up":
            fused = [partial(linear_swiglu, weight=weight) for weight in weights]

            def how(m: int, config: Callable[..., Config] = config, weight: TiledWeight = weights[0]) -> str:
                return config(m, True).label if gates(weight, m) else f"{config(m).label}, then swiglu"

            found.append(_Contender(f"{format} swiglu", nbytes, fused, how, max(ms)))
    return found


def table(rows: Sequence[Row]) -> str:
    """``rows`` as text, one a line: linear, M, implementation, microseconds, GB/s, share, times bf16, how."""
    return "\n".join(
        f"{r.linear:8} {r.m:5} {r.implementation:18} {r.microseconds:9.2f} us {r.gigabytes:7.0f} GB/s "
        f"{r.share:5.0%} {r.against_bf16:5.2f}x {r.how}"
        for r in rows
    )


def main() -> None:
    """Print the table and, with ``--output``, write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="int4-g64,nvfp4")
    parser.add_argument("--rivals", default=",".join(rivals.available()), help="tinygemm, gemlite")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="numbers of rows of activations")
    parser.add_argument("--output", type=Path)
    parsed = parser.parse_args()
    rows: list[Row] = []
    formats, others = ([name for name in text.split(",") if name] for text in (parsed.formats, parsed.rivals))
    for some in measure(formats, others, [int(m) for m in parsed.rows.split(",")]):
        rows += some
        print(table(some), flush=True)
        if parsed.output:
            device = torch.cuda.get_device_name()
            text = json.dumps(
                {"device": device, "torch": torch.__version__, "rows": [asdict(r) for r in rows]}
            )
            parsed.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
