"""Running samples through a loaded Lance while the target linears are observed.

Answers are the model's own greedy ones, decoded token by token as in use: what is quantized has to reproduce
them, and on them it is compared. Pictures and clips run the whole schedule with both guidance branches, so
every timestep the model will meet is seen; each timestep gives the same number of rows of the target, guided
or not. The VAE encodes the sources of edits and first frames; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from core.calibration.observers import Observer, Share
from core.calibration.samples import MIXED
from core.calibration.statistics import Statistics
from core.evaluation import requests
from core.evaluation.samples import ANSWERING, Sample, Settings
from core.lance.joint import Stream, run_together
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
    settings: Mapping[str, Settings],
    statistics: Statistics,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
    mixed: int = 0,
) -> dict[str, dict[str, int]]:
    """Run ``samples`` and add what is seen to ``statistics``.

    Args:
        settings: by task.
        progress: called with (samples done, in all, what comes).
        mixed: how many sequences to run that pack one sample of every task, each as far as it was run alone.

    Returns:
        Noisy rows by task and timestep.
    """
    total = len(samples) + mixed
    streams: dict[str, list[Stream]] = {}
    with Observer(pipeline.model, statistics) as observer:
        for index, item in enumerate(samples):
            progress(index, total, f"{item.task} {item.key}")
            observer.task = item.task
            kept = streams.setdefault(item.task, [])
            asked = requests.request(item, settings[item.task])
            if item.task in ANSWERING:
                read = requests.question(pipeline, item, asked)
                tokens = [token for token, _ in read.steps(settings[item.task].max_new_tokens)]
                if len(kept) < mixed:
                    kept.append(Stream(read.packed, read.features, answer=tokens))
                continue
            stratum = place(len(kept), mixed)
            stream = _draw(requests.scene(pipeline, asked), settings[item.task], observer, stratum)
            if len(kept) < mixed:
                kept.append(stream)
        observer.task, observer.share = MIXED, None
        for index in range(mixed):
            progress(len(samples) + index, total, f"{MIXED} {index}")
            run_together(pipeline.model, *_sequence(streams, index))
        progress(total, total, "")
    return observer.timesteps


def place(index: int, count: int) -> float:
    """Where in the schedule, from 0 to 1, the target blocks of the mixed sequence ``index`` of ``count`` stand."""
    return (index + 0.5) / count if index < count else 0.0


def _sequence(streams: Mapping[str, list[Stream]], index: int) -> tuple[list[Stream], float | None]:
    """One stream of every task that has so many, and the flow time that observers are told."""
    chosen = [kept[index] for kept in streams.values() if index < len(kept)]
    times = [float(stream.times.max()) for stream in chosen if stream.times is not None]
    return chosen, max(times, default=None)


def _draw(scene: Scene, settings: Settings, observer: Observer, stratum: float) -> Stream:
    """Sample a target; what the step at ``stratum`` of the schedule saw."""
    sampling = Sampling(
        num_steps=settings.num_steps,
        timestep_shift=settings.timestep_shift,
        cfg_text_scale=settings.cfg_text_scale,
    )
    drawing = scene.drawing
    observer.share = stratified(sampling, len(scene.start))
    wanted = sampling.schedule()[0].tolist()[int(stratum * sampling.num_steps)]
    seen: list[torch.Tensor] = []

    def velocities(
        latents: torch.Tensor, time: float, guided: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if time == wanted:
            seen.append(latents)
        return drawing.velocities(latents, time, guided)

    start = scene.start.to(drawing.conditional.model.device)
    sample(start, velocities, sampling, fixed=drawing.fixed)
    return Stream(
        drawing.packed, drawing.features, drawing.sources, latents=seen[0], times=drawing.times(wanted)
    )
