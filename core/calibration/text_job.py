"""The job ``calibrate`` for a causal LM: texts through the model, and what its linears see kept."""

from __future__ import annotations

import time
from typing import Any

from core.calibration import prose, texts
from core.calibration.plan import located
from core.calibration.record import CalibrationRecord
from core.calibration.recording import keep, start_run
from core.calibration.sequences import Sequences
from core.calibration.statistics import Statistics
from core.checkpoints.describe import CheckpointInfo
from core.jobs.context import JobContext
from core.runtime.causal_lm import load_text_model
from core.runtime.device import pick_device, pick_dtype, suit_threads


def run_texts(info: CheckpointInfo, spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Calibrate the causal LM ``info`` as ``spec`` says: ``suite`` is a file of texts, ``samples`` how many sequences.

    Raises:
        UsageError: a task that is none of a causal LM's.
        DataError: a file that holds no texts.
        CheckpointError: a damaged checkpoint, or a decoder of a structure that is not known.
    """
    started = time.monotonic()
    tasks = list(spec.get("tasks") or [prose.TASK])
    prose.check_tasks(info, tasks)
    seed, count = int(spec.get("seed") or 0), int(spec.get("samples") or prose.DEFAULT_SEQUENCES)
    rows = int(spec.get("rows") or texts.ROWS)
    source, documents = prose.documents(spec.get("suite"))
    device = pick_device(str(spec.get("device") or "auto"))
    dtype = pick_dtype(str(spec.get("dtype") or "auto"), device)
    suit_threads(info.nbytes, device)
    model = load_text_model(info.path, device, dtype)
    chosen = texts.pieces(model, documents, count, seed)
    data = texts.fingerprint(chosen)
    name = str(spec.get("name") or f"{info.name}_{prose.TASK}-n{len(chosen)}-s{seed}")
    run_id = start_run(
        context,
        info,
        spec,
        seed=seed,
        tasks=tasks,
        samples=len(chosen),
        suite=spec.get("suite"),
        device=device,
        data=data,
        notes={},
    )
    total = sum(len(piece.tokens) for piece in chosen)
    context.log(f"{name}: {len(chosen)} sequences of {source}, {total:,} tokens, on {device}")
    if len(chosen) < count:
        context.log(f"{source} has no more: {count} sequences were asked for")
    statistics, sequences = Statistics(rows, seed, data), Sequences()
    texts.collect_texts(
        model,
        chosen,
        statistics,
        lambda done, total, message: context.progress(done, total, "sequences", message),
        sequences,
    )
    record = CalibrationRecord(
        name=name,
        checkpoint=info.name,
        checkpoint_fingerprint=info.fingerprint,
        tasks=[prose.TASK],
        samples=[f"{prose.TASK}/{piece.key}" for piece in chosen],
        data_fingerprint=data,
        seed=seed,
        rows_per_bucket=rows,
        dtype=str(dtype).removeprefix("torch."),
        tokens={linear: statistics.tokens.get(linear, {}) for linear in model.structure.target_linears()},
        timesteps={},
        statistics_sha256="",
        settings={"sequence": min(texts.SEQUENCE, model.positions)},
        files=located([str(spec["suite"])] if spec.get("suite") else []),
    )
    return keep(context, run_id, started, statistics, sequences, record).figures | {"unseen_linears": 0}
