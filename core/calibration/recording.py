"""What calibrations of every family put into the store: the run, the files, the registered calibration."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.calibration.merge import write_calibration
from core.calibration.record import CalibrationRecord
from core.calibration.sequences import Sequences
from core.calibration.statistics import Statistics
from core.checkpoints.describe import CheckpointInfo
from core.files import sha256_text
from core.jobs.context import JobContext
from core.store import Store
from core.store.manifest import collect


@dataclass(frozen=True)
class Kept:
    """A calibration that was written and registered, and its figures for the job's result."""

    record: CalibrationRecord
    figures: dict[str, Any]


def start_run(
    context: JobContext,
    info: CheckpointInfo,
    spec: Mapping[str, Any],
    *,
    seed: int,
    tasks: Sequence[str],
    samples: int,
    suite: str | None,
    device: torch.device,
    data: str,
    notes: Mapping[str, Any],
) -> int:
    """Begin the run of a calibration; ``data`` is its samples' fingerprint, ``notes`` go into the manifest."""
    manifest = collect(
        device=str(device),
        kernel_path=f"torch:{device.type}",
        seeds={"samples": seed, "rows": seed},
        checkpoint=info.fingerprint,
        data=data,
    )
    return context.store.start_run(
        kind="calibrate",
        checkpoint=info.name,
        task="+".join(tasks),
        samples=samples,
        suite=suite,
        job_id=context.job_id,
        device=str(device),
        spec_hash=sha256_text(json.dumps(spec, sort_keys=True)),
        manifest=manifest | dict(notes),
    )


def keep(
    context: JobContext,
    run_id: int,
    started: float,
    statistics: Statistics,
    sequences: Sequences,
    record: CalibrationRecord,
) -> Kept:
    """Write and register a calibration and end its run, which began at ``started`` of the monotonic clock."""
    folder = context.data_dir / "calibrations" / record.name
    record = write_calibration(folder, statistics, sequences, record)
    register(context.store, folder, record)
    seconds = time.monotonic() - started
    context.store.finish_run(run_id, "succeeded", seconds)
    return Kept(record, summary(folder, record) | {"run": run_id, "seconds": round(seconds, 3)})


def register(store: Store, folder: Path, record: CalibrationRecord) -> None:
    """Record a finished calibration in the store."""
    store.register_calibration(
        name=record.name,
        checkpoint=record.checkpoint,
        path=str(folder),
        fingerprint=record.fingerprint,
        tasks=record.tasks,
        samples=len(record.samples),
        tokens=record.total_tokens,
        details={"seed": record.seed, "dtype": record.dtype, "merged_from": record.merged_from},
    )


def summary(folder: Path, record: CalibrationRecord) -> dict[str, Any]:
    """A calibration in a few figures."""
    return {
        "calibration": record.name,
        "path": str(folder),
        "checkpoint": record.checkpoint,
        "tasks": record.tasks,
        "samples": len(record.samples),
        "tokens": record.total_tokens,
        "fingerprint": record.fingerprint,
    }
