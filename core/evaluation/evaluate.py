"""One evaluation: a loaded checkpoint or variant over one suite, every output stored as soon as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from core.errors import Cancelled
from core.evaluation.answers import AnswerExaminer
from core.evaluation.baseline import BF16, Baseline, run_folder
from core.evaluation.conditions import spec_hash
from core.evaluation.drawings import DrawingExaminer
from core.evaluation.overlap import calibrated_on, contents
from core.evaluation.perplexity import TextExaminer
from core.evaluation.readers import reader_of
from core.evaluation.samples import ANSWERING, Sample, Settings, Suite
from core.evaluation.subject import Subject
from core.huggingface.loading import CausalLM
from core.lance.loading import Pipeline
from core.runtime import Enforcement
from core.store import Store, manifest


class Examiner(Protocol):
    """Runs the samples of one task and gathers their scores."""

    def examine(self, index: int, sample: Sample) -> dict[str, Any]: ...
    def scores(self) -> dict[str, float | None]: ...
    def save(self, folder: Path) -> None: ...


def evaluate(
    store: Store,
    pipeline: Pipeline | CausalLM,
    subject: Subject,
    suite: Suite,
    settings: Settings | None,
    evaluation: dict[str, Any],
    *,
    baseline: Baseline | None,
    running: Enforcement,
    job_id: int | None = None,
    after_sample: Callable[[], None] = lambda: None,
) -> int:
    """Run ``suite`` on the loaded ``subject`` and record it; the id of the run.

    Every output is in the database when its sample is done. A run that fails or is cancelled stays, marked
    so, with the outputs it made. A bf16 run without a baseline keeps the file that others are scored against.

    Args:
        settings: how samples are run; None of running text.
        evaluation: from ``conditions.describe_evaluation``.
        baseline: the bf16 run to score against; None scores against the truth alone.
        running: what ``core.runtime.enforcement`` says of the pipeline, for the manifest.
        after_sample: called after each stored output; may raise ``Cancelled``.
    """
    keep = subject.recipe == BF16 and baseline is None
    examiner: Examiner
    if settings is None:
        examiner = TextExaminer(reader_of(pipeline), pipeline.folder, baseline, keep=keep)
    else:
        assert isinstance(pipeline, Pipeline), "a causal LM is evaluated on running text alone"
        make = AnswerExaminer if suite.task in ANSWERING else DrawingExaminer
        examiner = make(pipeline, settings, store, baseline, keep=keep)
    started = time.monotonic()
    device = str(pipeline.device)
    record = manifest.collect(
        device=device,
        kernel_path=running.kernel_path,
        seeds={"noise": suite.samples[0].seed},
        checkpoint=evaluation["source"],
        variant=subject.fingerprint if subject.variant else None,
        suite=suite.fingerprint,
    ) | {"evaluation": evaluation, "enforcement": running.to_json()}
    if (kept := contents(suite)) is not None:
        record["contents"] = kept
    if subject.variant and (seen := calibrated_on(subject.path, suite, store)):
        record["calibrated_on"] = seen
    if suite.description:
        record["description"] = suite.description
    run_id = store.start_run(
        kind="evaluate",
        checkpoint=subject.checkpoint,
        variant=subject.variant,
        recipe=subject.recipe,
        bits=subject.bits,
        size_bytes=subject.size_bytes,
        suite=suite.name,
        task=suite.task,
        samples=len(suite.samples),
        baseline_run_id=baseline.run["id"] if baseline else None,
        job_id=job_id,
        device=device,
        spec_hash=spec_hash(evaluation),
        manifest=record,
    )
    state = "failed"
    try:
        for index, sample in enumerate(suite.samples):
            fields = examiner.examine(index, sample)
            store.add_output(run_id, index, sample_key=sample.key, task=suite.task, **fields)
            after_sample()
        examiner.save(run_folder(store, run_id))
        store.set_scores(run_id, **examiner.scores())
        state = "succeeded"
    except (Cancelled, KeyboardInterrupt):
        state = "cancelled"
        raise
    finally:
        store.finish_run(run_id, state, time.monotonic() - started)
    return run_id
