"""From a sample to what Lance is asked: the entry points that ``generate`` uses, for calibration and evaluation."""

from __future__ import annotations

from core.evaluation.samples import TEXT, Sample, Settings
from core.lance import tasks
from core.lance.generation import Understanding
from core.lance.loading import Pipeline
from core.lance.prompts import UNDERSTANDING_TASKS
from core.lance.requests import Request


def request(sample: Sample, settings: Settings) -> Request | None:
    """What ``sample`` asks for, its pictures and clips read or drawn; None for a question about nothing to be seen,
    which is none of Lance's own tasks.

    Raises:
        UsageError: settings that do not fit the task.
        DataError: a picture or clip is gone or damaged.
    """
    if sample.task == TEXT:
        return None
    asks = sample.task in UNDERSTANDING_TASKS
    sized = sample.task in ("t2i", "t2v")
    return Request(
        sample.task,
        sample.question if asks else sample.prompt,
        tuple(sample.visuals()),
        sample.instruction if asks else None,
        settings.resolution,
        settings.height if sized else None,
        settings.width if sized else None,
        settings.num_frames if sample.task in ("t2v", "i2v") else None,
        sample.seed,
    )


def question(pipeline: Pipeline, sample: Sample, asked: Request | None) -> Understanding:
    """A question, read and ready to be answered."""
    if asked is None:
        return Understanding(pipeline, [], [], sample.question, sample.instruction)
    return tasks.understand(pipeline, asked)


def scene(pipeline: Pipeline, asked: Request | None) -> tasks.Scene:
    """A picture or clip to make, its source encoded, ready to be sampled.

    Raises:
        CheckpointError: no VAE for a source.
    """
    assert asked is not None, "a task that draws has a request"
    return tasks.prepare(pipeline, asked)
