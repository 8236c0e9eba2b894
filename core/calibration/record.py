"""The JSON half of a calibration: where it comes from and how many tokens each linear saw; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError, UsageError
from core.files import expanded, sha256_file, sha256_text

if TYPE_CHECKING:
    from core.checkpoints.describe import CheckpointInfo
    from core.store import Store

RECORD_FILE = "calibration.json"
STATISTICS_FILE = "statistics.safetensors"
SEQUENCES_FILE = "sequences.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class CalibrationRecord:
    """A calibration folder in words. A *bucket* is ``task/role``, for example ``x2t_image/answer``."""

    name: str
    checkpoint: str
    checkpoint_fingerprint: str
    tasks: list[str]
    samples: list[str]
    """``task/key`` of every sample, in order."""
    data_fingerprint: str
    """SHA-256 over the samples' contents and the settings they ran with."""
    seed: int
    rows_per_bucket: int
    dtype: str
    """dtype the model ran in; sampled rows are kept in it, so they are the rows the linears really saw."""
    tokens: dict[str, dict[str, int]]
    """Target linear, seen or not -> bucket -> rows observed."""
    timesteps: dict[str, dict[str, int]]
    """Task -> flow time (three decimals) -> noisy rows observed, for one linear of the generation expert."""
    statistics_sha256: str
    settings: dict[str, Any] = field(default_factory=dict)
    merged_from: list[str] = field(default_factory=list)
    """Fingerprints of the calibrations this one was merged from."""
    evaluated: list[str] = field(default_factory=list)
    """``task/key`` of samples that are evaluated on too, which was forced: scores on them flatter."""

    contents: list[str] = field(default_factory=list)
    """What ``core.evaluation.overlap`` knows each sample by, so that an evaluation on it can say so."""
    sequences_sha256: str = ""
    """Of the file with whole sequences; older calibrations have none."""
    sequence_tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of those sequences by bucket."""
    longest_sequence: int = 0
    """Tokens of the longest of them."""
    files: list[str] = field(default_factory=list)
    """The suites or texts that samples were taken from, files by their absolute paths; all others were drawn, or come
    along.
    """

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the name and where files lay."""
        body = asdict(self) | {"name": ""}
        del body["files"]
        for later in ("evaluated", "contents", "sequences_sha256", "sequence_tokens", "longest_sequence"):
            if not body[later]:
                del body[later]
        return sha256_text(json.dumps(body, sort_keys=True))

    @property
    def total_tokens(self) -> int:
        """Tokens of each bucket, counted once: the greatest count of any linear."""
        most: dict[str, int] = {}
        for buckets in self.tokens.values():
            for bucket, count in buckets.items():
                most[bucket] = max(most.get(bucket, 0), count)
        return sum(most.values())

    def by_role(self) -> dict[str, dict[str, int]]:
        """Tokens of each task by role, counted once as ``total_tokens`` does."""
        table: dict[str, dict[str, int]] = {}
        for buckets in self.tokens.values():
            for bucket, count in buckets.items():
                task, _, role = bucket.partition("/")
                roles = table.setdefault(task, {})
                roles[role] = max(roles.get(role, 0), count)
        return table

    def to_json(self) -> str:
        """The content of ``calibration.json``."""
        body = {"format": FORMAT, "fingerprint": self.fingerprint} | asdict(self)
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def check_source(info: CheckpointInfo) -> None:
    """Check that what is to be calibrated is no variant.

    Raises:
        UsageError: it is one.
    """
    if info.kind == "variant":
        raise UsageError(f"{info.name} is a variant; calibrate the checkpoint it was made from")


def find_calibration(store: Store, name: str) -> Path:
    """The folder of a calibration by registered name or by path.

    Raises:
        UsageError: neither, or the registered folder is gone.
    """
    row = store.calibration(name)
    if row is not None:
        if not Path(row["path"]).is_dir():
            raise UsageError(
                f"{name}: registered at {row['path']}, which is gone; `calibrations run` makes it again, "
                f"`calibrations remove {name}` forgets it"
            )
        return Path(row["path"])
    if expanded(name).is_dir():
        return expanded(name).resolve()
    known = [str(row["name"]) for row in store.calibrations()]
    there = (
        f"`calibrations show` lists {', '.join(known)}"
        if known
        else "`calibrations run CHECKPOINT` makes one"
    )
    raise UsageError(f"{name}: no such calibration and no such folder; {there}")


def load_record(folder: Path) -> CalibrationRecord:
    """Read ``calibration.json`` of a calibration folder.

    Raises:
        UsageError: the folder holds no calibration.
        CheckpointError: the file is damaged, of another format, or does not fit its statistics.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder}: no calibration: it has no {RECORD_FILE}; `calibrations run CHECKPOINT` makes one"
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version = body.pop("format")
        fingerprint = body.pop("fingerprint")
        if version != FORMAT:
            raise CheckpointError(f"{path}: format {version}, this version reads {FORMAT}; calibrate again")
        record = CalibrationRecord(**body)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no calibration record ({error}); calibrate again") from error
    if record.fingerprint != fingerprint:
        raise CheckpointError(f"{path}: does not match its own fingerprint; calibrate again")
    return record


def verify_statistics(folder: Path, record: CalibrationRecord) -> None:
    """Check the statistics file, and the sequences' if there are some, against the digests in their record.

    Raises:
        CheckpointError: one is missing or its bytes differ.
    """
    wanted = {STATISTICS_FILE: record.statistics_sha256}
    if record.sequences_sha256:
        wanted[SEQUENCES_FILE] = record.sequences_sha256
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; calibrate again")
        if sha256_file(path) != digest:
            raise CheckpointError(f"{path}: truncated or changed since it was written; calibrate again")


@dataclass(frozen=True)
class Coverage:
    """How many tokens one target linear saw."""

    linear: str
    buckets: dict[str, int]

    @property
    def tokens(self) -> int:
        """Tokens of all buckets."""
        return sum(self.buckets.values())


def coverage(tokens: Mapping[str, Mapping[str, int]], linears: Iterable[str] | None = None) -> list[Coverage]:
    """The coverage table: of ``linears``, whether they were seen or not, or of all that were."""
    names = tokens if linears is None else linears
    return [Coverage(name, dict(tokens.get(name, {}))) for name in names]


def too_few(table: Iterable[Coverage], minimum: int) -> list[Coverage]:
    """The rows of a coverage table with fewer than ``minimum`` tokens."""
    return [row for row in table if row.tokens < minimum]
