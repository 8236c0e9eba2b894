"""Sums and sampled rows of every shared input, per bucket; kept as safetensors.

Each bucket of each input has its token count, ``sum |x|`` and ``sum x^2`` per channel (float64) and a uniform
random sample of real rows. The sample keeps the rows with the least random priorities, so that samples of
parts merge into a sample of the whole; on disk they are ordered by it, so that the first n are a sample too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import CheckpointError, WorkbenchError
from core.formats.safetensors_file import save_tensors

DEFAULT_ROWS = 2048
"""Rows that a bucket keeps of one input, if they are not too long."""

ROW_ELEMENTS = 1 << 24
"""Values that a bucket keeps of one input, which bounds memory: 2048 rows of 2048 channels, 1524 of 11008.

Second moments are estimated from these rows, of all buckets together. On the embedded checkpoint the loss of weights
compensated by them falls until there are about two rows a channel; with fewer, ``Curvature`` keeps it below that of
rounding to nearest, which moments taken as they are do not.
"""

MIN_ROWS = 256
"""Rows that a bucket may keep however long they are."""


def rows_kept(capacity: int, channels: int) -> int:
    """How many rows of ``channels`` channels a bucket keeps at most."""
    return min(capacity, max(MIN_ROWS, ROW_ELEMENTS // channels))


def _seeded(*parts: object) -> torch.Generator:
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass
class Moments:
    """What one bucket of one input has shown so far."""

    sum_abs: Tensor
    """float64 [K]."""
    sum_sq: Tensor
    """float64 [K]."""
    rows: Tensor
    """[r, K] on the CPU in the dtype the linear saw, in no order."""
    priority: Tensor
    """float64 [r], random; the rows with the least are kept."""
    count: int = 0
    _room: Tensor = field(default_factory=lambda: torch.empty(0))
    """What ``rows`` is the first part of while the sample grows."""

    @classmethod
    def empty(cls, channels: int, dtype: torch.dtype, device: torch.device) -> Moments:
        """Nothing seen yet."""
        # The Metal backend has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        zeros = torch.zeros(channels, dtype=wide, device=device)
        rows = torch.empty(0, channels, dtype=dtype)
        return cls(zeros, zeros.clone(), rows, torch.empty(0, dtype=torch.float64))

    def add(self, x: Tensor, capacity: int, generator: torch.Generator) -> None:
        """Take in rows x [n, K]; keep at most ``rows_kept(capacity, K)`` of all seen, each equally likely."""
        capacity = rows_kept(capacity, x.shape[1])
        wide = x.to(self.sum_abs.dtype)
        self.sum_abs += wide.abs().sum(0)
        self.sum_sq += wide.square().sum(0)
        self.count += x.shape[0]
        priority = torch.rand(x.shape[0], dtype=torch.float64, generator=generator)
        bar = float(self.priority.max()) if len(self.priority) >= capacity else 1.0
        chosen = (priority < bar).nonzero().flatten()
        if len(chosen):
            self._keep(x[chosen.to(x.device)].cpu(), priority[chosen], capacity)

    def _keep(self, rows: Tensor, priority: Tensor, capacity: int) -> None:
        """Let rows [n, K] compete with the kept ones; of a full sample only the rows that change are
        touched.
        """
        room = capacity - len(self.priority)
        if room > 0:
            self._append(rows[:room], priority[:room], capacity)
            rows, priority = rows[room:], priority[room:]
        if len(priority):
            together = torch.cat([self.priority, priority])
            kept = torch.zeros(len(together), dtype=torch.bool)
            kept[together.topk(capacity, largest=False).indices] = True
            free, taken = (~kept[:capacity]).nonzero().flatten(), kept[capacity:].nonzero().flatten()
            self.rows[free], self.priority[free] = rows[taken], priority[taken]

    def _append(self, rows: Tensor, priority: Tensor, capacity: int) -> None:
        """Take rows in behind the kept ones, into memory that doubles: an answer brings one row at a time."""
        held = len(self.priority)
        end = held + len(rows)
        if end > len(self._room):
            self._room = rows.new_empty(min(capacity, max(end, 2 * held)), rows.shape[1])
            self._room[:held] = self.rows
        self._room[held:end] = rows
        self.rows = self._room[:end]
        self.priority = torch.cat([self.priority, priority])

    def merge(self, other: Moments, capacity: int) -> Moments:
        """Both together: counts and sums add up, the sample is one of the union."""
        merged = Moments(
            self.sum_abs + other.sum_abs,
            self.sum_sq + other.sum_sq,
            self.rows[:0],
            self.priority[:0],
            self.count + other.count,
        )
        capacity = rows_kept(capacity, self.rows.shape[1])
        merged._keep(self.rows, self.priority, capacity)
        merged._keep(other.rows, other.priority, capacity)
        return merged


@dataclass
class Statistics:
    """Moments by input key and bucket, and token counts by linear and bucket."""

    capacity: int = DEFAULT_ROWS
    seed: int = 0
    salt: str = ""
    """Enters the seeds of row samples, so that samples of different data are independent."""
    moments: dict[str, dict[str, Moments]] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    _generators: dict[tuple[str, str], torch.Generator] = field(default_factory=dict)

    def add(self, key: str, bucket: str, x: Tensor) -> None:
        """Take in rows x [n, K] of input ``key``."""
        buckets = self.moments.setdefault(key, {})
        if bucket not in buckets:
            buckets[bucket] = Moments.empty(x.shape[-1], x.dtype, x.device)
        place = (key, bucket)
        if place not in self._generators:
            self._generators[place] = _seeded(self.seed, self.salt, key, bucket)
        buckets[bucket].add(x, self.capacity, self._generators[place])

    def count(self, linear: str, bucket: str, rows: int) -> None:
        """Note that ``linear`` saw so many more rows."""
        buckets = self.tokens.setdefault(linear, {})
        buckets[bucket] = buckets.get(bucket, 0) + rows

    def save(self, path: Path) -> None:
        """Write the moments to a safetensors file at ``path``.

        Raises:
            WorkbenchError: an input held NaN or infinite values.
        """
        tensors: dict[str, Tensor] = {}
        for key, buckets in self.moments.items():
            for bucket, moments in buckets.items():
                if not bool(moments.sum_sq.isfinite().all()):
                    raise WorkbenchError(
                        f"{key}: {bucket} tokens hold NaN or infinite values; run in a wider dtype or check "
                        "the checkpoint with `checkpoints verify`"
                    )
                order = moments.priority.argsort()
                tensors |= {
                    f"{key}/{bucket}/count": torch.tensor([moments.count]),
                    f"{key}/{bucket}/sum_abs": moments.sum_abs.double().cpu(),
                    f"{key}/{bucket}/sum_sq": moments.sum_sq.double().cpu(),
                    f"{key}/{bucket}/rows": moments.rows[order],
                    f"{key}/{bucket}/priority": moments.priority[order],
                }
        save_tensors(tensors, path)


class StatisticsFile:
    """A statistics file, read input by input."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        self.path = path
        try:
            self._handle = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); calibrate again") from error
        self._buckets: dict[str, list[str]] = {}
        for name in self._handle.keys():  # noqa: SIM118 - a handle is no dict
            if name.endswith("/count"):
                key, _, bucket = name.removesuffix("/count").partition("/")
                self._buckets.setdefault(key, []).append(bucket)

    def keys(self) -> list[str]:
        """The inputs it has."""
        return sorted(self._buckets)

    def buckets(self, key: str) -> list[str]:
        """The buckets of input ``key``, sorted; none if it was never seen."""
        return sorted(self._buckets.get(key, []))

    def moments(self, key: str, bucket: str, rows: int | None = None) -> Moments:
        """One bucket of one input; of its rows only the first ``rows``, which are a sample of all, if given."""
        get, part = self._handle.get_tensor, self._handle.get_slice
        place = f"{key}/{bucket}"
        return Moments(
            get(f"{place}/sum_abs"),
            get(f"{place}/sum_sq"),
            part(f"{place}/rows")[:rows],
            part(f"{place}/priority")[:rows],
            int(get(f"{place}/count").item()),
        )


def merge_moments(
    parts: Iterable[StatisticsFile], capacity: int, tokens: Iterable[Mapping[str, Mapping[str, int]]]
) -> Statistics:
    """Several statistics as one: counts and sums add up, row samples become samples of the union."""
    merged = Statistics(capacity)
    for part in parts:
        for key in part.keys():  # noqa: SIM118
            for bucket in part.buckets(key):
                found = part.moments(key, bucket)
                buckets = merged.moments.setdefault(key, {})
                buckets[bucket] = buckets[bucket].merge(found, capacity) if bucket in buckets else found
    for counts in tokens:
        for linear, by_bucket in counts.items():
            merged.tokens.setdefault(linear, {})
            for bucket, rows in by_bucket.items():
                merged.count(linear, bucket, rows)
    return merged
