"""Which kernel runs, with which block sizes: results of tuning as data, by device, and a rule where there are none.

``tuned/<device>.json`` holds the fastest configuration found on that device for each weight format, shape and
number of rows M; the user's cache holds the same for devices that are not shipped. It is read at the first use and
never written while a model runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "tuned"

HOPPER = "NVIDIA H100 80GB HBM3"
"""The device that is shipped for its kind."""

Kernel = Literal["direct", "early", "matmul", "hopper", "expand"]


@dataclass(frozen=True)
class Config:
    """One way to run a quantized linear.

    ``matmul``: ``block_m`` x ``block_n`` outputs a program, K divided among ``splits`` programs and, inside
    one, taken ``blocks`` blocks at a time. With ``ahead`` a number it starts before the previous kernel has
    ended, where the device can, and asks for that many blocks of weights meanwhile. ``direct``:
    ``direct_matmul`` with such tiles, all steps of a program read at once if they are no more than ``stages``, and at
    most ``registers`` (0: any number) a thread. ``early``: ``early_matmul`` with such tiles, ``blocks`` blocks of K a
    program. ``hopper``: ``hopper_matmul`` with such tiles, ``wide_matmul`` with larger ones than 128 x 128.
    ``expand``: ``chunk`` weight rows (0: all of them) at a time are decoded into scratch memory and multiplied by the
    vendor's library.
    """

    kernel: Kernel
    block_m: int = 16
    block_n: int = 64
    blocks: int = 1
    warps: int = 4
    stages: int = 4
    splits: int = 1
    ahead: int | None = None
    chunk: int = 0
    registers: int = 0

    @property
    def wide(self) -> bool:
        """Whether ``wide_matmul`` runs it."""
        return self.kernel == "hopper" and self.block_m * self.block_n > 128 * 128

    @property
    def label(self) -> str:
        """For tables, for example ``matmul 16x64x1 w4 s4 k2 a16``."""
        if self.kernel == "expand":
            return f"expand {self.chunk or 'all'}"
        if self.kernel == "early":
            return f"early {self.block_m}x{self.block_n}x{self.blocks} k{self.splits}"
        if self.kernel == "hopper":
            return f"hopper {self.block_m}x{self.block_n} w{self.warps} s{self.stages} k{self.splits}"
        shape = f"{self.block_m}x{self.block_n}x{self.blocks}"
        if self.kernel == "direct":
            most = f" r{self.registers}" if self.registers else ""
            return f"direct {shape} w{self.warps} s{self.stages} k{self.splits}{most}"
        ahead = "" if self.ahead is None else f" a{self.ahead}"
        return f"{self.kernel} {shape} w{self.warps} s{self.stages} k{self.splits}{ahead}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Entry:
    """What tuning found for one case: M rows of activations, a weight [``rows``, ``columns``]."""

    format: str
    rows: int
    columns: int
    m: int
    gated: bool
    config: Config
    microseconds: float


def tuned_file(device: str, folder: Path = FOLDER) -> Path:
    """Where the results for ``device`` (its name as torch tells it) are."""
    return folder / (re.sub(r"[^A-Za-z0-9]+", "_", device).strip("_") + ".json")


def read_tuned(path: Path) -> tuple[Entry, ...]:
    """The entries of a file written by ``write_tuned``; none if there is no such file."""
    if not path.exists():
        return ()
    rows = json.loads(path.read_text())["entries"]
    return tuple(Entry(**{**row, "config": Config(**row["config"])}) for row in rows)


def tuned_text(device: str, entries: list[Entry], versions: dict[str, str]) -> str:
    """The JSON that ``read_tuned`` reads, one entry a line."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    head = json.dumps({"device": device, **versions})[1:-1]
    return f'{{{head}, "entries": [\n{lines}\n]}}\n'


def _distance(entry: Entry, rows: int, columns: int) -> float:
    return abs(math.log(entry.rows / rows)) + abs(math.log(entry.columns / columns))


def nearest(
    entries: tuple[Entry, ...],
    format: str,  # noqa: A002
    rows: int,
    columns: int,
    m: int,
    gated: bool,
) -> Config | None:
    """The configuration of the nearest tuned case, or None if there is none of the format's kind.

    The format comes first (another group of the same kind stands in), then whether it is gated, then the shape;
    of that shape's cases the one with the fewest rows that is not under ``m``, or the one with the most.
    """
    kind = [entry for entry in entries if entry.format.split("-")[0] == format.split("-")[0]]
    same = [entry for entry in kind if entry.format == format] or kind
    # A gated linear can always run as a plain one with the gate after it.
    fitting = [entry for entry in same if entry.gated == gated] or [e for e in same if not e.gated]
    if not fitting:
        return None
    least = min(_distance(entry, rows, columns) for entry in fitting)
    shape = [entry for entry in fitting if _distance(entry, rows, columns) <= least + 1e-9]
    above = [entry for entry in shape if entry.m >= m]
    return (min(above, key=lambda e: e.m) if above else max(shape, key=lambda e: e.m)).config


def rule(rows: int, columns: int, m: int, processors: int) -> Config:
    """A configuration for a device that was never tuned: ``processors`` is its number of multiprocessors."""
    if m > 512:
        return Config("expand")
    block_m = next(size for size in (8, 16, 32, 64, 128) if size >= min(m, 128))
    block_n = 64 if block_m < 64 else 128
    tiles = -(-rows // block_n) * -(-m // block_m)
    splits = 1 if block_m > 64 else max(1, min(8, 2 * processors // tiles, columns // 256))
    return Config("matmul", block_m, block_n, 1, 4 if block_m < 64 else 8, 4 if block_m < 128 else 3, splits)


def user_folder() -> Path:
    """Where the results for devices that are not shipped are kept: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lance-workbench" / "tuned"


def known(device: str) -> tuple[Entry, ...]:
    """What was found on ``device`` itself, shipped or in the user's cache; none if neither can be read."""
    for folder in (FOLDER, user_folder()):
        # A cache may be of another version, or half a file.
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            if found := read_tuned(tuned_file(device, folder)):
                return found
    return ()


def nearest_device(device: str) -> str | None:
    """A shipped device that ``device`` is like, so that its results serve until there are its own."""
    return HOPPER if re.search(r"\bG?H(20|100|200|800)\b", device) else None


@cache
def _entries(device: str) -> tuple[Entry, ...]:
    like = nearest_device(device)
    return known(device) or (known(like) if like else ())


@cache
def choose(
    device: str,
    processors: int,
    format: str,  # noqa: A002
    rows: int,
    columns: int,
    m: int,
    gated: bool,
) -> Config:
    """The configuration for ``m`` rows of activations and a weight [``rows``, ``columns``] on ``device``."""
    found = nearest(_entries(device), format, rows, columns, m, gated)
    return found if found is not None else rule(rows, columns, m, processors)
