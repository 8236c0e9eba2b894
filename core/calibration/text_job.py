"""The job ``calibrate`` for a causal LM: texts through the model, and what its linears see kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from core.calibration import texts
from core.calibration.job import register, summary
from core.calibration.merge import write_calibration
from core.calibration.record import CalibrationRecord
from core.calibration.statistics import Statistics
from core.checkpoints.describe import CheckpointInfo
from core.errors import UsageError
from core.evaluation.prose import documents_of
from core.files import sha256_text
from core.jobs.context import JobContext
from core.runtime.causal_lm import load_text_model
from core.runtime.device import pick_device, pick_dtype
from core.store.manifest import collect


def run_texts(info: CheckpointInfo, spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Calibrate the causal LM ``info`` as ``spec`` says: ``suite`` is a file of texts, ``samples`` how many sequences.

    Raises:
        UsageError: a task that is none of a causal LM's.
        DataError: a file that holds no texts.
        CheckpointError: a damaged checkpoint, or a decoder of a structure that is not known.
    """
    started = time.monotonic()
    tasks = list(spec.get("tasks") or [texts.TASK])
    if tasks != [texts.TASK]:
        raise UsageError(
            f"{info.name}: is no Lance and is calibrated on {texts.TASK}, not on {', '.join(tasks)}"
        )
    seed, count = int(spec.get("seed") or 0), int(spec.get("samples") or texts.DEFAULT_SEQUENCES)
    rows = int(spec.get("rows") or texts.ROWS)
    source = Path(spec["suite"]).expanduser() if spec.get("suite") else texts.SHIPPED
    documents = documents_of(source)
    device = pick_device(str(spec.get("device") or "auto"))
    dtype = pick_dtype(str(spec.get("dtype") or "auto"), device)
    model = load_text_model(info.path, device, dtype)
    chosen = texts.pieces(model, documents, count, seed)
    data = texts.fingerprint(chosen)
    name = str(spec.get("name") or f"{info.name}_{texts.TASK}-n{len(chosen)}-s{seed}")
    run_id = context.store.start_run(
        kind="calibrate",
        checkpoint=info.name,
        task=texts.TASK,
        samples=len(chosen),
        suite=spec.get("suite"),
        job_id=context.job_id,
        device=str(device),
        spec_hash=sha256_text(json.dumps(spec, sort_keys=True)),
        manifest=collect(
            device=str(device),
            kernel_path=f"torch:{device.type}",
            seeds={"samples": seed, "rows": seed},
            checkpoint=info.fingerprint,
            data=data,
        ),
    )
    total = sum(len(piece.tokens) for piece in chosen)
    context.log(f"{name}: {len(chosen)} sequences of {source.name}, {total:,} tokens, on {device}")
    if len(chosen) < count:
        context.log(f"{source.name} has no more: {count} sequences were asked for")
    statistics = Statistics(rows, seed, data)
    texts.collect_texts(
        model,
        chosen,
        statistics,
        lambda done, total, message: context.progress(done, total, "sequences", message),
    )
    record = CalibrationRecord(
        name=name,
        checkpoint=info.name,
        checkpoint_fingerprint=info.fingerprint,
        tasks=[texts.TASK],
        samples=[f"{texts.TASK}/{piece.key}" for piece in chosen],
        data_fingerprint=data,
        seed=seed,
        rows_per_bucket=rows,
        dtype=str(dtype).removeprefix("torch."),
        tokens={linear: statistics.tokens.get(linear, {}) for linear in model.structure.target_linears()},
        timesteps={},
        statistics_sha256="",
        settings={"sequence": min(texts.SEQUENCE, model.positions)},
    )
    folder = context.data_dir / "calibrations" / name
    record = write_calibration(folder, statistics, record)
    register(context.store, folder, record)
    seconds = time.monotonic() - started
    context.store.finish_run(run_id, "succeeded", seconds)
    return summary(folder, record) | {"run": run_id, "seconds": round(seconds, 3), "unseen_linears": 0}
