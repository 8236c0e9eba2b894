"""The job ``calibrate``: run samples through a checkpoint and keep what its linears see."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.calibration.collect import collect_statistics
from core.calibration.merge import merge, write_calibration
from core.calibration.record import CalibrationRecord, coverage
from core.calibration.samples import MIXED, SampleSet, record_keys, sample_set
from core.calibration.statistics import DEFAULT_ROWS, Statistics
from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.answers import check_resolution
from core.evaluation.overlap import Evaluated
from core.evaluation.suites import DEFAULT_TASKS, TEXT, Settings
from core.files import sha256_text
from core.jobs.context import JobContext
from core.lance.buckets import check_frames
from core.lance.requests import check_checkpoint
from core.runtime.device import pick_device, pick_dtype
from core.store import Store
from core.store.manifest import collect

DEFAULT_SAMPLES = 16
"""Samples of each task, if the spec does not say."""

OPTIONS = ("resolution", "height", "width", "num_frames", "num_steps", "max_new_tokens")
"""Settings that a spec may override; they bound tokens, and so memory."""


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Calibrate as ``spec`` says; the calibration appears under its name whole or not at all."""
    from core.runtime.loading import load_model

    started = time.monotonic()
    info = describe(resolve(str(spec["checkpoint"]), context.store))
    if info.kind == "variant":
        raise UsageError(f"{info.name} is a variant; calibrate the checkpoint it was made from")
    seed = int(spec.get("seed") or 0)
    chosen = samples_of(spec, info, context.store)
    settings = settings_of(spec, info, chosen)
    for task in settings:
        if task != TEXT:
            check_checkpoint(info.path, task)
    device = pick_device(str(spec.get("device") or "auto"))
    dtype = pick_dtype(str(spec.get("dtype") or "auto"), device)
    name = str(spec.get("name") or f"{info.name}_{'+'.join(chosen.tasks)}-n{len(chosen.samples)}-s{seed}")
    described = recorded(settings)
    rows = int(spec.get("rows") or DEFAULT_ROWS)
    data = chosen.fingerprint(described)
    run_id = context.store.start_run(
        kind="calibrate",
        checkpoint=info.name,
        task="+".join(chosen.tasks),
        samples=len(chosen.samples),
        suite=", ".join(files_of(spec)) or None,
        job_id=context.job_id,
        device=str(device),
        spec_hash=sha256_text(json.dumps(spec, sort_keys=True)),
        manifest=collect(
            device=str(device),
            kernel_path=f"torch:{device.type}",
            seeds={"samples": seed, "rows": seed},
            checkpoint=info.fingerprint,
            data=data,
        )
        | ({"evaluated": list(chosen.evaluated)} if chosen.evaluated else {}),
    )
    context.log(f"{name}: {len(chosen.samples)} samples of {', '.join(chosen.tasks)} on {device}")
    pipeline = load_model(info.path, device, dtype, observed=True)
    statistics = Statistics(rows, seed, data)
    timesteps = collect_statistics(
        pipeline,
        chosen.samples,
        settings,
        statistics,
        lambda done, total, message: context.progress(done, total, "samples", message),
        chosen.mixed,
    )
    linears = pipeline.structure.target_linears()
    record = CalibrationRecord(
        name=name,
        checkpoint=info.name,
        checkpoint_fingerprint=info.fingerprint,
        tasks=chosen.tasks,
        samples=record_keys(chosen.samples),
        data_fingerprint=data,
        seed=seed,
        rows_per_bucket=rows,
        dtype=str(dtype).removeprefix("torch."),
        tokens={name: statistics.tokens.get(name, {}) for name in linears},
        timesteps=timesteps,
        statistics_sha256="",
        settings=described,
        evaluated=list(chosen.evaluated),
    )
    folder = context.data_dir / "calibrations" / name
    record = write_calibration(folder, statistics, record)
    register(context.store, folder, record)
    seconds = time.monotonic() - started
    context.store.finish_run(run_id, "succeeded", seconds)
    unseen = [row.linear for row in coverage(record.tokens) if not row.tokens]
    if unseen:
        context.log(f"{len(unseen)} linears saw no token, {unseen[0]} the first: add a task that uses them")
    return summary(folder, record) | {
        "run": run_id,
        "seconds": round(seconds, 3),
        "unseen_linears": len(unseen),
    }


def files_of(spec: dict[str, Any]) -> list[str]:
    """The suites that ``spec`` names: ``suite`` is one, ``suites`` are several."""
    return [str(spec["suite"])] if spec.get("suite") else [str(name) for name in spec.get("suites") or []]


def samples_of(spec: dict[str, Any], info: CheckpointInfo, store: Store | None) -> SampleSet:
    """The samples that ``spec`` asks for.

    Raises:
        UsageError, DataError: as ``sample_set``.
    """
    return sample_set(
        info.name,
        list(spec.get("tasks") or DEFAULT_TASKS),
        int(spec.get("samples") or DEFAULT_SAMPLES),
        files_of(spec),
        int(spec.get("seed") or 0),
        evaluated=Evaluated(store),
        force=bool(spec.get("force")),
    )


def settings_of(spec: dict[str, Any], info: CheckpointInfo, chosen: SampleSet) -> dict[str, Settings]:
    """How the samples of each task are run: the checkpoint's defaults, the suite's, and what ``spec`` says.

    Raises:
        UsageError: a resolution, size or frame count that Lance does not have.
    """
    override = {key: spec.get(key) for key in OPTIONS}
    found = {}
    for task in chosen.tasks:
        if task == MIXED:
            continue
        found[task] = Settings.combine(info.defaults, chosen.settings.get(task, {}), override)
        check_resolution(found[task].resolution)
        if task in ("t2v", "i2v"):
            check_frames(found[task].num_frames, task)
    return found


def recorded(settings: Mapping[str, Settings]) -> dict[str, Any]:
    """The settings as data: once if all tasks share them, else by task."""
    each = {task: found.recorded(list(settings)) for task, found in settings.items()}
    first = next(iter(each.values()))
    return first if all(found == first for found in each.values()) else each


def merge_registered(store: Store, folders: list[Path], name: str) -> dict[str, Any]:
    """Merge calibrations into a new one called ``name`` and register it."""
    folder = store.data_dir / "calibrations" / name
    record = merge(folders, folder, name)
    register(store, folder, record)
    return summary(folder, record)


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
