"""The job ``calibrate``: run samples through a checkpoint and keep what its linears see."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from core.calibration.collect import collect_statistics
from core.calibration.merge import merge
from core.calibration.plan import files_of, located, make_plan, recorded
from core.calibration.record import CalibrationRecord, check_source, coverage
from core.calibration.recording import keep, register, start_run, summary
from core.calibration.samples import record_keys
from core.calibration.sequences import Sequences
from core.calibration.statistics import Statistics
from core.checkpoints.describe import describe
from core.checkpoints.resolve import resolve
from core.evaluation.footprint import check_fit
from core.evaluation.overlap import content
from core.jobs.context import JobContext
from core.store import Store


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Calibrate as ``spec`` says; the calibration appears under its name whole or not at all."""
    from core.runtime.device import suit_threads
    from core.runtime.loading import load_model

    started = time.monotonic()
    info = describe(resolve(str(spec["checkpoint"]), context.store))
    check_source(info)
    if info.family == "huggingface":
        from core.calibration.text_job import run_texts

        return run_texts(info, spec, context)
    plan = make_plan(spec, info, context.store)
    seed, chosen, device, dtype = plan.seed, plan.chosen, plan.device, plan.dtype
    described = recorded(plan.settings)
    data = chosen.fingerprint(described)
    name = str(spec.get("name") or f"{info.name}_{'+'.join(chosen.tasks)}-n{len(chosen.samples)}-s{seed}")
    check_fit(info, plan.needed, device, dtype)
    run_id = start_run(
        context,
        info,
        spec,
        seed=seed,
        tasks=chosen.tasks,
        samples=len(chosen.samples),
        suite=", ".join(files_of(spec)) or None,
        device=device,
        data=data,
        notes={"evaluated": list(chosen.evaluated)} if chosen.evaluated else {},
    )
    context.log(f"{name}: {len(chosen.samples)} samples of {', '.join(chosen.tasks)} on {device}")
    suit_threads(info.nbytes, device)
    pipeline = load_model(info.path, device, dtype, observed=True)
    statistics, sequences = Statistics(plan.rows, seed, data), Sequences()
    timesteps = collect_statistics(
        pipeline,
        chosen.samples,
        plan.settings,
        statistics,
        lambda done, total, message: context.progress(done, total, "samples", message),
        chosen.mixed,
        sequences,
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
        files=located(files_of(spec)),
    )
    done = keep(context, run_id, started, statistics, sequences, record)
    record = done.record
    unseen = [row.linear for row in coverage(record.tokens) if not row.tokens]
    if unseen:
        context.log(f"{len(unseen)} linears saw no token, {unseen[0]} the first: add a task that uses them")
    return done.figures | {"unseen_linears": len(unseen)}


def merge_registered(store: Store, folders: list[Path], name: str) -> dict[str, Any]:
    """Merge calibrations into a new one called ``name`` and register it."""
    folder = store.data_dir / "calibrations" / name
    record = merge(folders, folder, name)
    register(store, folder, record)
    return summary(folder, record)
