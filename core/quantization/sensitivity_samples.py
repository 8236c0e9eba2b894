"""The samples that a sensitivity is measured on: suites of Lance's tasks, or running text for a causal LM; no torch."""

from __future__ import annotations

from collections.abc import Sequence

from core.calibration.samples import drawn
from core.checkpoints.describe import CheckpointInfo
from core.demo import NAME as DEMO
from core.errors import UsageError
from core.evaluation import suites
from core.evaluation.samples import GENERATION, PERPLEXITY, UNDERSTANDING, Sample, Suite
from core.evaluation.suites import PROSE

ANSWERS, DRAWINGS, PIECES = 21, 4, 24
"""Samples that are drawn if none are given: every kind of question once; of running text, pieces."""

SEED = 77
"""Of drawn samples, so that they are none that a calibration or a suite draws."""


def chosen(info: CheckpointInfo, names: Sequence[str] | None, limit: int | None) -> list[Suite]:
    """The suites of these names, those of a causal LM whole; none for samples that are drawn.

    Raises:
        UsageError: no such suite, one that this checkpoint is not measured on, or none where samples cannot be drawn.
        DataError: a file of samples is damaged.
    """
    if info.family == "huggingface":
        texts = [suites.load(name) for name in names or (PROSE,)]
        if other := [suite for suite in texts if suite.task != PERPLEXITY]:
            raise UsageError(
                f"{other[0].name}: holds {other[0].task} samples; a causal LM is measured on {PROSE} or {PROSE}:FILE"
            )
        return texts
    found = [suites.load(name, limit) for name in names or ()]
    if running := [suite.name for suite in found if suite.task == PERPLEXITY]:
        raise UsageError(f"{running[0]}: is running text; a Lance is measured on suites of its own tasks")
    if not found and info.name != DEMO:
        raise UsageError(
            f"{info.name}: measure it on samples of its own kind: give --suite, files in Lance's format "
            "whose samples are answered and drawn"
        )
    return found


def drawn_samples(limit: int | None) -> list[Sample]:
    """Questions and captions of the embedded checkpoint's world."""
    counts = {UNDERSTANDING: limit or ANSWERS, GENERATION: limit or DRAWINGS}
    return [sample for task, count in counts.items() for sample in drawn(task, count, SEED)]
