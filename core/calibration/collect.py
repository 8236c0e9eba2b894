"""Running samples through a loaded Lance while the target linears are observed.

Answers are the model's own greedy ones, decoded token by token as in use: what is quantized has to reproduce
them, and on them it is compared. Pictures and clips run the whole schedule with both guidance branches, so
every timestep the model will meet is seen; each timestep gives the same number of rows of the target, guided
or not. The VAE encodes the sources of edits and first frames; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from core.calibration.observers import Observer, Share
from core.calibration.statistics import Statistics
from core.evaluation import requests
from core.evaluation.suites import ANSWERING, Sample, Settings
from core.lance.loading import Pipeline
from core.lance.sampler import Sampling, sample
from core.lance.tasks import Scene

NOISY_ROWS = 64
"""Rows taken of each picture or clip at each timestep, guidance branches together."""


def stratified(sampling: Sampling, tokens: int, rows: int = NOISY_ROWS) -> Share:
    """Which share of the noisy rows to take so that all timesteps of a picture of ``tokens`` count alike.

    A guided step shows every token twice, with and without the caption; another step once.
    """
    share = min(rows, tokens) / tokens
    return lambda time: share / 2 if sampling.guided(time) else share


@torch.inference_mode()
def collect_statistics(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    settings: Settings,
    statistics: Statistics,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> dict[str, dict[str, int]]:
    """Run ``samples`` and add what is seen to ``statistics``.

    Returns:
        Noisy rows by task and timestep.
    """
    with Observer(pipeline.model, statistics) as observer:
        for index, item in enumerate(samples):
            progress(index, len(samples), f"{item.task} {item.key}")
            observer.task = item.task
            asked = requests.request(item, settings)
            if item.task in ANSWERING:
                for _ in requests.question(pipeline, item, asked).steps(settings.max_new_tokens):
                    pass
            else:
                _draw(requests.scene(pipeline, asked), settings, observer)
        progress(len(samples), len(samples), "")
    return observer.timesteps


def _draw(scene: Scene, settings: Settings, observer: Observer) -> None:
    sampling = Sampling(
        num_steps=settings.num_steps,
        timestep_shift=settings.timestep_shift,
        cfg_text_scale=settings.cfg_text_scale,
    )
    drawing = scene.drawing
    observer.share = stratified(sampling, len(scene.start))
    start = scene.start.to(drawing.conditional.model.device)
    sample(start, drawing.velocities, sampling, fixed=drawing.fixed)
