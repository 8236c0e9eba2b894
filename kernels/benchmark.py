"""Speed of the quantized linears beside bf16 and other libraries: ``python -m kernels.benchmark``.

All full-size linears and numbers of rows, against cuBLAS in bfloat16, torch's tinygemm and gemlite in the same
process: CUDA-graph replays, medians, weights rotating through more than the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels import rivals
from kernels.config import choose
from kernels.launch import launch
from kernels.linear import linear
from kernels.timing import (
    ROWS,
    SHAPES,
    copies_of,
    microseconds,
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


def _calls(x: Tensor, weights: Sequence[Tensor]) -> list[Callable[[], object]]:
    return [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]  # type: ignore[misc]


def measure(
    formats: Sequence[str],
    others: Sequence[str] = ("tinygemm",),
    ms: Sequence[int] = ROWS,
    group: int = 64,
) -> Iterator[list[Row]]:
    """Time every linear; yields the rows of one linear at a time.

    Args:
        formats: of ``TiledWeight.format``.
        others: names from ``kernels.rivals``.
        ms: numbers of rows of activations.
        group: columns that share a scale in the rivals' weights.
    """
    peak = read_bandwidth()
    name = torch.cuda.get_device_name()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for key, (rows, columns) in SHAPES.items():
        out: list[Row] = []
        inputs = {m: random_rows(m, columns) for m in ms}

        def row(
            m: int, implementation: str, taken: float, nbytes: int, how: str, base: float, key: str = key
        ) -> Row:
            rate = nbytes / taken / 1e3
            return Row(key, m, implementation, round(taken, 2), round(rate, 1), round(rate * 1e9 / peak, 3),
                       round(base / taken, 2), how)  # fmt: skip

        dense = [
            torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
            for _ in range(copies_of(2 * rows * columns))
        ]
        bf16 = {m: microseconds(_calls(inputs[m], dense)) for m in ms}
        out += [row(m, "bf16", bf16[m], dense[0].nbytes, "cublas", bf16[m]) for m in ms]
        del dense
        for other in others:
            linears, nbytes = rivals.make(other, rows, columns, group)
            for m in (m for m in ms if m <= rivals.MOST_ROWS[other]):
                x = inputs[m]
                taken = microseconds([lambda f=f, x=x: f(x) for f in linears])  # type: ignore[misc]
                out.append(row(m, f"{other} int4-g{group}", taken, nbytes, "", bf16[m]))
            del linears
        for format in formats:  # noqa: A001
            weights = random_tiles(format, rows, columns, 1)
            weights = random_tiles(format, rows, columns, copies_of(weights[0].nbytes))
            for m in ms:
                x = inputs[m]
                taken = microseconds([lambda w=w, x=x: linear(x, w) for w in weights])  # type: ignore[misc]
                how = choose(name, processors, format, rows, columns, m, False)
                out.append(row(m, format, taken, weights[0].nbytes, how.label, bf16[m]))
                if key == "gate_up" and m <= 16:
                    gated = choose(name, processors, format, rows, columns, m, True)
                    taken = microseconds(
                        [lambda w=w, x=x, c=gated: launch(x, w, None, c, True) for w in weights]  # type: ignore[misc]
                    )
                    out.append(row(m, f"{format} swiglu", taken, weights[0].nbytes, gated.label, bf16[m]))
            del weights
        yield out


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
