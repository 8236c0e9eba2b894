"""Find the fastest configuration for each format, shape and number of rows: ``python -m kernels.tune``.

Every candidate is compiled first and its result checked, in as many processes as there are cores; then those that
are right are timed. The results are written after every shape, so a run that is cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kernels.config import Config, Entry, read_tuned, tuned_file, tuned_text
from kernels.decoder_triton import overlaps
from kernels.direct import candidates as direct_candidates
from kernels.early import candidates as early_candidates
from kernels.hopper import candidates as hopper_candidates
from kernels.launch import launch
from kernels.linear import LEAST_WIDE_ROWS, MOST_GATED_ROWS
from kernels.processes import failures
from kernels.tiles import BLOCK
from kernels.timing import ROWS, SHAPES, compare, copies_of, microseconds, random_rows, random_tiles
from kernels.trial import Trial, attempt

# Rows of a tile of activations to (rows of weight, blocks, warps, stages); what does not fit the device's shared
# memory fails to compile and drops out.
TILES = {
    8: [
        (16, 2, 2, 4), (16, 4, 2, 4), (16, 4, 4, 5), (16, 8, 4, 3), (32, 1, 2, 4), (32, 1, 2, 6), (32, 2, 2, 4),
        (32, 4, 4, 3), (64, 1, 4, 5), (64, 2, 8, 4), (128, 1, 4, 4),
    ],
    16: [
        (16, 4, 4, 4), (16, 8, 8, 3), (32, 2, 4, 4), (32, 4, 8, 3), (64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3),
        (128, 1, 8, 4),
    ],
    32: [(32, 2, 4, 4), (32, 4, 8, 3), (64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3), (128, 1, 8, 4)],
    64: [(64, 1, 4, 3), (64, 1, 4, 5), (128, 1, 4, 3), (128, 1, 8, 3)],
    128: [(64, 1, 4, 2), (64, 1, 4, 3), (128, 1, 8, 3)],
}  # fmt: skip

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Parts into which K can be divided."""

FINALISTS = 4
"""Configurations of a case that are timed a second time, beside each other and with more or less asked for ahead."""

AHEAD_BYTES = 2 * 2**20
"""Weights that all programs together ask for ahead, about. Behind a kernel that itself waits for memory, as down comes
behind gate and up in a layer, more takes away from it what is gained.
"""

PATIENCE = 45.0
"""Seconds without a result after which what is still being tried is taken to hang: several times what compiling
takes.
"""


def kinds(m: int) -> Iterator[Config]:
    """Tiles worth trying for ``m`` rows, without their splits."""
    fit = next((size for size in TILES if size >= m), max(TILES))
    # Where arithmetic begins to count, two smaller tiles can fill the device better than one.
    for size in (fit, fit // 2) if m >= 64 else (fit,):
        for rows, blocks, warps, stages in TILES[size]:
            yield Config("matmul", size, rows, blocks, warps, stages)


def candidates(m: int, rows: int, columns: int, processors: int) -> Iterator[Config]:
    """Configurations worth timing for ``m`` rows and a weight [``rows``, ``columns``]."""
    device = torch.device("cuda", torch.cuda.current_device())
    if m >= 256:
        for parts in (1, 2, 4) if rows > 8192 else (1,):
            yield Config("expand", chunk=0 if parts == 1 else -(-rows // parts // 256) * 256)
    yield from direct_candidates(m, rows, columns, processors, device)
    yield from early_candidates(m, rows, columns, processors, device)
    if m >= 32:
        yield from hopper_candidates(m, rows, columns, processors, device)
    if m > 2304:
        return
    for config in kinds(m):
        programs = -(-rows // config.block_n) * -(-m // config.block_m)
        # A part of K should have two steps at least.
        steps = columns // (BLOCK * config.blocks)
        possible = [splits for splits in SPLITS if splits == 1 or steps >= 2 * splits]
        # Per multiprocessor up to 1, 2, 4 or 8 programs, as full as the splits allow.
        full = {max((s for s in possible if programs * s <= processors * n), default=1) for n in (1, 2, 4, 8)}
        for splits in sorted(full):
            if programs * splits * 2 > processors or splits == max(possible):
                some = replace(config, splits=splits)
                yield some
                if overlaps(device):
                    yield replace(some, ahead=_ahead(config, programs * splits, steps // splits))


def _ahead(config: Config, programs: int, steps: int) -> int:
    """Blocks to ask for ahead: a power of two that keeps within ``AHEAD_BYTES`` and a program's share."""
    most = AHEAD_BYTES // (programs * config.block_n * 64)
    return 1 << min(max(most, 1), steps * config.blocks).bit_length() - 1


def _nearby(ahead: int | None) -> Sequence[int | None]:
    """``ahead`` itself, nothing, half and double of it."""
    return [None] if ahead is None else sorted({0, ahead // 2, ahead, 2 * ahead})


@dataclass(frozen=True)
class Case:
    """A linear [``rows``, ``columns``] to tune for each of ``ms`` rows of activations."""

    name: str
    rows: int
    columns: int
    ms: tuple[int, ...]
    gated: bool

    def trial(self, format: str, config: Config) -> Trial:  # noqa: A002
        """What shows whether ``config`` is right for the case, and has its kernel compiled."""
        if config.kernel in ("direct", "early"):
            # Their steps are compiled in.
            return Trial(format, config, self.gated, self.columns)
        # In how many parts and how much ahead is no matter of compilation; whether all steps are whole is.
        even = self.columns % (BLOCK * config.blocks) == 0
        tried = replace(config, splits=min(config.splits, 2), ahead=config.ahead and 1)
        return Trial(format, tried, self.gated, 1024 if even else 896)


def try_all(formats: list[str], cases: list[Case]) -> dict[Trial, str]:
    """Fill Triton's cache with every kernel that ``cases`` can ask for; what is wrong with those that fail."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    wanted = {
        case.trial(format, config)
        for format in formats  # noqa: A001
        for case in cases
        for m in case.ms
        for config in candidates(m, case.rows, case.columns, processors)
        if not case.gated or _can_gate(config, m)
    }
    return failures(attempt, list(wanted), os.cpu_count() or 1, PATIENCE)


def _can_gate(config: Config, m: int) -> bool:
    """Whether ``linear_swiglu`` of ``m`` rows of activations would run in this configuration."""
    if m >= LEAST_WIDE_ROWS:
        return config.wide
    return config.kernel in ("direct", "matmul") and config.splits == 1


def tune_case(
    format: str,  # noqa: A002
    case: Case,
    failed: Collection[Trial],
    report: list[tuple[int, str, float]],
) -> list[Entry]:
    """The fastest configuration for each number of rows, leaving out what ``failed`` in ``try_all``.

    ``report`` receives (m, label, microseconds) of all.
    """
    rows, columns = case.rows, case.columns
    weights = random_tiles(format, rows, columns, 2)
    weights = random_tiles(format, rows, columns, copies_of(weights[0].nbytes))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    entries = []
    for m in case.ms:
        x = random_rows(m, columns)

        def calls(config: Config, x: Tensor = x) -> list[Callable[[], object]]:
            return [partial(launch, x, weight, None, config, case.gated) for weight in weights]

        found: list[tuple[float, Config]] = []
        for config in candidates(m, rows, columns, processors):
            if case.gated and not _can_gate(config, m):
                continue
            if case.trial(format, config) in failed:
                continue
            try:
                taken = microseconds(calls(config), 5)
            except Exception as error:  # a configuration that this device cannot hold
                report.append((m, f"{config.label}: {type(error).__name__}", float("nan")))
                continue
            found.append((taken, config))
            report.append((m, config.label, taken))
        if not found:
            continue
        best = [config for _, config in sorted(found, key=lambda pair: pair[0])[:FINALISTS]]
        final = [replace(config, ahead=ahead) for config in best for ahead in _nearby(config.ahead)]
        times = compare([calls(config) for config in final], 11)
        report += [(m, f"{config.label} again", taken) for config, taken in zip(final, times, strict=True)]
        taken, config = min(zip(times, final, strict=True), key=lambda pair: pair[0])
        entries.append(Entry(format, rows, columns, m, case.gated, config, round(taken, 2)))
    return entries


def tune(
    formats: list[str], output: Path, seconds: float, ms: tuple[int, ...] = ROWS
) -> tuple[list[Entry], dict[str, list[tuple[int, str, float]]]]:
    """Tune ``formats`` for the full-size linears and write ``output`` after each case, for ``seconds`` at most.

    What ``output`` held of a case before is replaced from the smallest to the largest of ``ms``.

    Returns:
        the new entries, and every candidate's time by ``<format> <linear>``.
    """
    begin = time.monotonic()
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    name = torch.cuda.get_device_name()
    cases = [Case(key, *shape, ms, False) for key, shape in SHAPES.items()]
    gated = {m for m in ms if m <= MOST_GATED_ROWS or m >= LEAST_WIDE_ROWS}
    gated |= {LEAST_WIDE_ROWS} if min(ms) <= LEAST_WIDE_ROWS <= max(ms) else set()
    cases.append(Case("gate_up gated", *SHAPES["gate_up"], tuple(sorted(gated)), True))
    failed = try_all(formats, cases)
    for trial, reason in failed.items():
        print(f"left out: {trial.format} {trial.config.label}: {reason}", flush=True)
    print(f"compiled and checked in {time.monotonic() - begin:.0f} s", flush=True)
    held = list(read_tuned(output))
    entries: list[Entry] = []
    reports: dict[str, list[tuple[int, str, float]]] = {}
    for format in formats:  # noqa: A001
        for case in cases:
            if time.monotonic() - begin > seconds:
                print(f"out of time before {format} {case.name}", flush=True)
                return entries, reports
            found = tune_case(format, case, failed, reports.setdefault(f"{format} {case.name}", []))
            entries += found
            held = [entry for entry in held if not _covers(format, case, entry)] + found
            output.write_text(tuned_text(name, held, versions))
            for entry in found:
                print(
                    f"{format} {case.name} m={entry.m}: {entry.microseconds} us, {entry.config.label}",
                    flush=True,
                )
    return entries, reports


def _covers(format: str, case: Case, entry: Entry) -> bool:  # noqa: A002
    """Whether ``entry`` is of a case that was just tuned."""
    tuned = (format, case.rows, case.columns, case.gated)
    known = (entry.format, entry.rows, entry.columns, entry.gated)
    return tuned == known and bool(case.ms) and min(case.ms) <= entry.m <= max(case.ms)


def main() -> None:
    """Tune and write the results where ``kernels.config`` reads them, or to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="int4-g64,nvfp4", help="comma-separated: int4-g32, ..., nvfp4")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="numbers of rows of activations")
    parser.add_argument("--output", type=Path, help="default: kernels/tuned/<device>.json")
    parser.add_argument("--candidates", type=Path, help="write every candidate's time to this text file")
    parser.add_argument("--seconds", type=float, default=600, help="start no case after this time")
    parsed = parser.parse_args()
    output = parsed.output or tuned_file(torch.cuda.get_device_name())
    output.parent.mkdir(parents=True, exist_ok=True)
    ms = tuple(int(m) for m in parsed.rows.split(","))
    _, reports = tune(parsed.formats.split(","), output, parsed.seconds, ms)
    if parsed.candidates:
        lines = [f"{key}\t{m}\t{label}\t{us:.2f}" for key, rows in reports.items() for m, label, us in rows]
        parsed.candidates.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
