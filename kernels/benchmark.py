"""Speed of the quantized linears beside bf16 and other libraries: ``python -m kernels.benchmark``.

All full-size linears and numbers of rows, against cuBLAS in bfloat16 and torch's tinygemm in the same process:
CUDA-graph replays, medians, weights rotating through more than the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

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

TINYGEMM_ROWS = 64
"""Above this many rows tinygemm, made for few, is left out: it takes milliseconds."""


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


def _tinygemm(rows: int, columns: int, group: int) -> list[tuple[Tensor, Tensor]]:
    """Random weights in tinygemm's layout."""
    made = []
    for _ in range(copies_of(rows * columns // 2)):
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        made.append((packed, torch.rand(columns // group, rows, 2, device="cuda", dtype=torch.bfloat16)))
    return made


def measure(formats: Sequence[str], ms: Sequence[int] = ROWS, group: int = 64) -> Iterator[list[Row]]:
    """Time every linear; yields the rows of one linear at a time."""
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
        tiny = _tinygemm(rows, columns, group)
        for m in (m for m in ms if m <= TINYGEMM_ROWS):
            x = inputs[m]
            calls = [
                lambda x=x, w=w, s=s: torch.ops.aten._weight_int4pack_mm(x, w, group, s) for w, s in tiny
            ]
            nbytes = tiny[0][0].nbytes + tiny[0][1].nbytes
            out.append(row(m, f"tinygemm int4-g{group}", microseconds(calls), nbytes, "", bf16[m]))
        del tiny
        for format in formats:  # noqa: A001
            weights = random_tiles(format, rows, columns, 1)
            weights = random_tiles(format, rows, columns, copies_of(weights[0].nbytes))
            for m in ms:
                x = inputs[m]
                turn = weights if m < 1024 else weights[:6]
                taken = microseconds([lambda w=w, x=x: linear(x, w) for w in turn])  # type: ignore[misc]
                how = choose(name, processors, format, rows, columns, m, False)
                out.append(row(m, format, taken, weights[0].nbytes, how.label, bf16[m]))
                if key == "gate_up" and m <= 16:
                    gated = choose(name, processors, format, rows, columns, m, True)
                    taken = microseconds(
                        [lambda w=w, x=x, c=gated: launch(x, w, None, c, True) for w in turn]  # type: ignore[misc]
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
    parser.add_argument("--output", type=Path)
    parsed = parser.parse_args()
    rows: list[Row] = []
    for some in measure(parsed.formats.split(",")):
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
