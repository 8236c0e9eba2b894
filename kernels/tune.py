"""Find the fastest configuration for each format, shape and number of rows: ``python -m kernels.tune``.

Every candidate is compiled first, in as many processes as there are cores; then each is timed. The results are
written after every shape, so a run that is cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from kernels.config import Config, Entry, tuned_file, tuned_text
from kernels.launch import launch
from kernels.timing import ROWS, SHAPES, copies_of, microseconds, random_rows, random_tiles

# Rows of a tile of activations to (rows of weight, blocks, warps, stages); what does not fit the device's shared
# memory fails to compile and drops out.
TILES = {
    8: [
        (16, 1, 1, 6), (32, 1, 2, 4), (64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3), (128, 1, 4, 5), (128, 1, 8, 4),
        (16, 2, 2, 4), (16, 4, 4, 3), (16, 4, 4, 4), (16, 8, 8, 2), (32, 2, 4, 4), (32, 4, 4, 3), (32, 4, 8, 3),
    ],
    16: [(64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3), (128, 1, 8, 4), (16, 4, 4, 3), (32, 2, 4, 3), (32, 4, 4, 3)],
    32: [(64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3), (128, 1, 8, 4), (32, 2, 4, 3), (32, 4, 8, 2)],
    64: [(64, 1, 4, 3), (64, 1, 4, 4), (128, 1, 4, 3), (128, 1, 8, 3), (128, 1, 8, 4)],
    128: [(64, 1, 4, 2), (64, 1, 4, 3), (128, 1, 4, 3), (128, 1, 8, 3), (128, 1, 8, 4), (256, 1, 8, 3)],
    256: [(64, 1, 4, 3), (128, 1, 8, 2), (128, 1, 8, 3)],
}  # fmt: skip


def kinds(m: int) -> Iterator[Config]:
    """Configurations worth compiling for ``m`` rows, without their splits."""
    fit = next((size for size in TILES if size >= m), max(TILES))
    # Where arithmetic begins to count, two smaller tiles can fill the device better than one.
    for size in (fit, fit // 2) if m >= 128 else (fit,):
        for rows, blocks, warps, stages in TILES[size]:
            yield Config("matmul", size, rows, blocks, warps, stages)


def candidates(m: int, rows: int, columns: int, processors: int) -> Iterator[Config]:
    """Configurations worth timing for ``m`` rows and a weight [``rows``, ``columns``]."""
    if m >= 256:
        for parts in (1, 2, 4) if rows > 8192 else (1,):
            yield Config("expand", chunk=0 if parts == 1 else -(-rows // parts // 256) * 256)
    if m > 2304:
        return
    for config in kinds(m):
        programs = -(-rows // config.block_n) * -(-m // config.block_m)
        for splits in (1, 2, 4, 8):
            # A part of K should have two steps at least, and the device be neither starved nor flooded.
            steps = columns // (128 * config.blocks)
            if splits > 1 and (steps < 2 * splits or programs * splits > 16 * processors):
                continue
            if programs * splits * 4 < processors and splits < 8 and steps >= 4 * splits:
                continue
            yield replace(config, splits=splits)


def _compile(job: tuple[str, Config, bool]) -> str | None:
    """Run ``config`` once on a small weight, in a process of its own; the error's first line if it fails."""
    format, config, gated = job  # noqa: A001
    weight = random_tiles(format, 512, 1024, 1)[0]
    try:
        launch(random_rows(config.block_m, 1024), weight, None, config, gated)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{config.label}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


def compile_all(formats: list[str], gated: bool) -> list[str]:
    """Fill Triton's cache with every kernel that ``candidates`` can ask for; the errors of those that failed."""
    jobs = []
    for format in formats:  # noqa: A001
        configs = {replace(config, splits=splits) for m in ROWS for config in kinds(m) for splits in (1, 2)}
        jobs += [(format, config, False) for config in configs] + [(format, Config("expand"), False)]
        if gated:
            jobs += [(format, c, True) for c in configs if c.block_m <= 16 and c.splits == 1]
    workers = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return [error for error in pool.map(_compile, jobs, chunksize=2) if error is not None]


def tune_shape(
    format: str,  # noqa: A002
    rows: int,
    columns: int,
    ms: tuple[int, ...],
    gated: bool,
    report: list[tuple[int, str, float]],
) -> list[Entry]:
    """The fastest configuration for each of ``ms``; ``report`` receives (m, label, microseconds) of all."""
    weights = random_tiles(format, rows, columns, 2)
    weights = random_tiles(format, rows, columns, copies_of(weights[0].nbytes))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    entries = []
    for m in ms:
        x = random_rows(m, columns)
        found: list[tuple[float, Config]] = []
        for config in candidates(m, rows, columns, processors):
            if gated and (config.kernel == "expand" or config.splits > 1):
                continue
            try:
                taken = microseconds(
                    [lambda w=w, x=x, c=config: launch(x, w, None, c, gated) for w in weights],  # type: ignore[misc]
                    7 if m >= 256 else 11,
                )
            except Exception as error:  # a configuration that this device cannot hold
                report.append((m, f"{config.label}: {type(error).__name__}", float("nan")))
                continue
            found.append((taken, config))
            report.append((m, config.label, taken))
        if found:
            taken, config = min(found, key=lambda pair: pair[0])
            entries.append(Entry(format, rows, columns, m, gated, config, round(taken, 2)))
    return entries


def tune(
    formats: list[str], output: Path, seconds: float, ms: tuple[int, ...] = ROWS
) -> tuple[list[Entry], dict[str, list[tuple[int, str, float]]]]:
    """Tune ``formats`` for the full-size linears and write ``output`` after each shape, for ``seconds`` at most.

    Returns:
        the entries, and every candidate's time by ``<format> <linear>``.
    """
    begin = time.monotonic()
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    name = torch.cuda.get_device_name()
    for error in compile_all(formats, gated=True):
        print(f"does not compile: {error}", flush=True)
    print(f"compiled in {time.monotonic() - begin:.0f} s", flush=True)
    entries: list[Entry] = []
    reports: dict[str, list[tuple[int, str, float]]] = {}
    for format in formats:  # noqa: A001
        cases = [(key, *shape, ms, False) for key, shape in SHAPES.items()]
        cases.append(("gate_up gated", *SHAPES["gate_up"], tuple(m for m in ms if m <= 16), True))
        for key, rows, columns, some, gated in cases:
            if time.monotonic() - begin > seconds:
                print(f"out of time before {format} {key}", flush=True)
                return entries, reports
            report = reports.setdefault(f"{format} {key}", [])
            found = tune_shape(format, rows, columns, some, gated, report)
            entries += found
            output.write_text(tuned_text(name, entries, versions))
            for entry in found:
                print(
                    f"{format} {key} m={entry.m}: {entry.microseconds} us, {entry.config.label}", flush=True
                )
    return entries, reports


def main() -> None:
    """Tune and write the results where ``kernels.config`` reads them, or to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="int4-g64,nvfp4", help="comma-separated: int4-g32, ..., nvfp4")
    parser.add_argument("--output", type=Path, help="default: kernels/tuned/<device>.json")
    parser.add_argument("--candidates", type=Path, help="write every candidate's time to this text file")
    parser.add_argument("--seconds", type=float, default=600, help="start no shape after this time")
    parsed = parser.parse_args()
    output = parsed.output or tuned_file(torch.cuda.get_device_name())
    output.parent.mkdir(parents=True, exist_ok=True)
    _, reports = tune(parsed.formats.split(","), output, parsed.seconds)
    if parsed.candidates:
        lines = [f"{key}\t{m}\t{label}\t{us:.2f}" for key, rows in reports.items() for m, label, us in rows]
        parsed.candidates.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
