"""The job of kind ``evaluate``: a checkpoint or variant over one or more suites, with the baselines it needs."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from core.checkpoints.describe import family_of
from core.errors import UsageError
from core.evaluation import baseline as baselines
from core.evaluation import suites
from core.evaluation.baseline import Baseline
from core.evaluation.conditions import describe_evaluation, settings_of, spec_hash
from core.evaluation.drawings import sampling
from core.evaluation.evaluate import evaluate
from core.evaluation.fit import check_samples, check_task
from core.evaluation.overlap import calibrated_on
from core.evaluation.samples import Settings, Suite
from core.evaluation.subject import Subject, check_suite, open_subjects
from core.runtime import enforcement, load_model, pick_device, pick_dtype
from core.runtime.causal_lm import load_text_model
from core.runtime.device import suit_threads

if TYPE_CHECKING:
    from core.jobs.context import JobContext


@dataclass
class _Plan:
    """One suite to run, and what it is scored against."""

    suite: Suite
    settings: Settings | None
    evaluation: dict[str, Any]
    baseline: Baseline | None


class _Progress:
    """Counts samples over all runs of the job."""

    def __init__(self, context: JobContext, total: int) -> None:
        self.context, self.total, self.done, self.message = context, total, 0, ""

    def __call__(self) -> None:
        self.done += 1
        self.context.progress(self.done, self.total, "samples", self.message)


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Evaluate as ``spec`` says; ``{"runs": [ids], "baselines": [ids of bf16 runs made for it]}``.

    A spec has ``checkpoint`` (name or path), ``suites``, and optionally ``limit`` (a number of samples for
    all suites, or one for each by its name), ``baseline``, ``device``, ``dtype`` and ``resolution``. The
    baseline ``"auto"`` is the bf16 run of the same samples and settings; for a variant it is run first where
    there is none. A number is that run; None scores against the truth alone.

    Raises:
        UsageError: an unknown name, suite, device or baseline, or settings that do not work.
        CheckpointError, DataError: damaged files.
        Cancelled: asked to stop; outputs made so far stay in a run marked so.
    """
    store = context.store
    if not spec.get("suites"):
        raise UsageError(f"no suite given; suites are {', '.join([*suites.names(), suites.PROSE])}")
    device = pick_device(spec.get("device") or "auto")
    dtype = pick_dtype(spec.get("dtype") or "auto", device)
    subject, source, info = open_subjects(
        str(spec["checkpoint"]), store, alone=spec.get("baseline", "auto") is None
    )
    suit_threads(info.nbytes, device)
    plans = []
    for name in spec["suites"]:
        limit = spec.get("limit")
        suite = suites.load(name, limit.get(name) if isinstance(limit, dict) else limit)
        check_suite(info, suite)
        settings = settings_of(info, suite, spec.get("resolution"))
        if settings is not None:
            sampling(settings)
            check_task(info.path, suite.task, settings)
        evaluation = describe_evaluation(
            suite, settings, source.fingerprint, str(device), str(dtype).removeprefix("torch.")
        )
        plans.append(_Plan(suite, settings, evaluation, _baseline(spec, context, source, suite, evaluation)))
        if subject.variant and (seen := calibrated_on(subject.path, suite, store)):
            context.log(
                f"{suite.name}: {subject.name} was calibrated on {seen} of its samples; scores on them say little"
            )
    lacking = [plan for plan in plans if plan.baseline is None] if _wants_baseline(spec, subject) else []
    _check_memory(subject, plans, device, dtype)
    if lacking:
        _check_memory(source, lacking, device, dtype)
    progress = _Progress(context, sum(len(plan.suite.samples) for plan in plans + lacking))
    made = []
    if lacking:
        names = ", ".join(plan.suite.name for plan in lacking)
        context.log(
            f"no bf16 evaluation of {names} with these samples and settings: running {source.name} first"
        )
        for plan, run_id in zip(
            lacking, _run_all(context, source, lacking, device, dtype, progress), strict=True
        ):
            made.append(run_id)
            plan.baseline = Baseline(store, store.run(run_id))
    return {"runs": _run_all(context, subject, plans, device, dtype, progress), "baselines": made}


def _check_memory(subject: Subject, plans: list[_Plan], device: torch.device, dtype: torch.dtype) -> None:
    samples = [(each, plan.settings) for plan in plans if plan.settings for each in plan.suite.samples]
    if samples:
        check_samples(subject.path, samples, device, dtype)


def _wants_baseline(spec: dict[str, Any], subject: Subject) -> bool:
    return spec.get("baseline", "auto") == "auto" and subject.variant is not None


def _baseline(
    spec: dict[str, Any], context: JobContext, source: Subject, suite: Suite, evaluation: dict[str, Any]
) -> Baseline | None:
    """The baseline that the spec asks for, as far as it exists."""
    wanted = spec.get("baseline", "auto")
    if wanted is None:
        return None
    if wanted == "auto":
        return baselines.find(context.store, source.checkpoint, suite.task, spec_hash(evaluation))
    return baselines.chosen(context.store, int(wanted), suite.name, evaluation)


def _run_all(
    context: JobContext,
    subject: Subject,
    plans: list[_Plan],
    device: torch.device,
    dtype: torch.dtype,
    progress: _Progress,
) -> list[int]:
    """Load ``subject`` once and run every plan on it; the ids of the runs. The model is gone afterwards."""
    context.log(f"loading {subject.name} on {device} as {str(dtype).removeprefix('torch.')}")
    load = load_text_model if family_of(subject.path) == "huggingface" else load_model
    pipeline = load(subject.path, device, dtype)
    running = enforcement(pipeline)
    ids = []
    for plan in plans:
        progress.message = f"{subject.name} on {plan.suite.name}"
        context.log(f"{progress.message}: {len(plan.suite.samples)} samples")
        ids.append(
            evaluate(
                context.store,
                pipeline,
                subject,
                plan.suite,
                plan.settings,
                plan.evaluation,
                baseline=plan.baseline,
                running=running,
                job_id=context.job_id,
                after_sample=progress,
            )
        )
    del pipeline
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return ids
