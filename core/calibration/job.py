"""The job ``calibrate``: run samples through a checkpoint and keep what its linears see."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from core.calibration.collect import collect_statistics
from core.calibration.merge import merge, write_calibration
from core.calibration.plan import files_of, make_plan, recorded
from core.calibration.record import CalibrationRecord, coverage
from core.calibration.samples import record_keys
from core.calibration.statistics import Statistics
from core.checkpoints.describe import describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.footprint import check_fit
from core.evaluation.overlap import content
from core.files import sha256_text
from core.jobs.context import JobContext
from core.store import Store
from core.store.manifest import collect


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Calibrate as ``spec`` says; the calibration appears under its name whole or not at all."""
    from core.runtime.loading import load_model

    started = time.monotonic()
    info = describe(resolve(str(spec["checkpoint"]), context.store))
    if info.kind == "variant":
        raise UsageError(f"{info.name} is a variant; calibrate the checkpoint it was made from")
    if info.family == "huggingface":
        from core.calibration.text_job import run_texts

        return run_texts(info, spec, context)
    plan = make_plan(spec, info, context.store)
    seed, chosen, device, dtype = plan.seed, plan.chosen, plan.device, plan.dtype
    described = recorded(plan.settings)
    data = chosen.fingerprint(described)
    name = str(spec.get("name") or f"{info.name}_{'+'.join(chosen.tasks)}-n{len(chosen.samples)}-s{seed}")
    check_fit(info, plan.needed, device, dtype)
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
    statistics = Statistics(plan.rows, seed, data)
    timesteps = collect_statistics(
        pipeline,
        chosen.samples,
        plan.settings,
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
        rows_per_bucket=plan.rows,
        dtype=str(dtype).removeprefix("torch."),
        tokens={name: statistics.tokens.get(name, {}) for name in linears},
        timesteps=timesteps,
        statistics_sha256="",
        settings=described,
        evaluated=list(chosen.evaluated),
        contents=[content(sample) for sample in chosen.samples],
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
