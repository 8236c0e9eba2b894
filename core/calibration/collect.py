"""Running samples through a loaded Lance while the target linears are observed.

Answers are the model's own greedy ones, decoded token by token as in use: what is quantized has to reproduce
them, and on them it is compared. Pictures and clips run the whole schedule with both guidance branches, so
every timestep the model will meet is seen; each timestep gives the same number of rows of the target, guided
or not. The VAE encodes the sources of edits and first frames; nothing is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from core.calibration.observers import Observer, Share
from core.calibration.samples import MIXED
from core.calibration.sequences import InputSequence, Sequences
from core.calibration.statistics import Statistics
from core.evaluation import requests
from core.evaluation.samples import ANSWERING, Sample, Settings
from core.lance.joint import Stream, rows_of, run_together
from core.lance.loading import Pipeline
from core.lance.model import Lance
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
    sequences: Sequences | None = None,
) -> dict[str, dict[str, int]]:
    """Run ``samples`` and add what is seen to ``statistics``.

    Args:
        settings: by task.
        progress: called with (samples done, in all, what comes).
        mixed: how many sequences to run that pack one sample of every task, each as far as it was run alone.
        sequences: takes what enters the decoder, of a picture or clip at one of its timesteps.

    Returns:
        Noisy rows by task and timestep.
    """
    total = len(samples) + mixed
    streams: dict[str, list[Stream]] = {}
    numbers: Counter[str] = Counter()
    with Observer(pipeline.model, statistics) as observer:
        for index, item in enumerate(samples):
            progress(index, total, f"{item.task} {item.key}")
            observer.task = item.task
            kept = streams.setdefault(item.task, [])
            asked = requests.request(item, settings[item.task])
            if item.task in ANSWERING:
                read = requests.question(pipeline, item, asked)
                tokens = [token for token, _ in read.steps(settings[item.task].max_new_tokens)]
                stream = Stream(read.packed, read.features, answer=tokens)
            else:
                stratum = place(numbers[item.task], mixed)
                stream = _draw(requests.scene(pipeline, asked), settings[item.task], observer, stratum)
            numbers[item.task] += 1
            if len(kept) < mixed:
                kept.append(stream)
            if sequences is not None and sequences.has_room(item.task):
                branches = (True,) if item.task in ANSWERING else (True, False)
                for caption in branches:
                    sequences.add(input_sequence(pipeline.model, item.task, replace(stream, caption=caption)))
        observer.task, observer.share = MIXED, None
        for index in range(mixed):
            progress(len(samples) + index, total, f"{MIXED} {index}")
            run_together(pipeline.model, *_sequence(streams, index))
        progress(total, total, "")
    return observer.timesteps


def place(index: int, count: int) -> float:
    """Where in the schedule, from 0 to 1, the target block of the sample ``index`` of a task is kept.

    Of the first ``count``, which mixed sequences are packed of, evenly; then so that however many follow are spread
    evenly (the radical inverse of van der Corput's sequence).
    """
    if index < count:
        return (index + 0.5) / count
    return float(int(f"{index - count + 1:b}"[::-1], 2)) / 2 ** (index - count + 1).bit_length()


def input_sequence(model: Lance, task: str, stream: Stream) -> InputSequence:
    """What of a stream enters the first layer, as it is kept."""
    rows = rows_of(model, stream)
    cos, sin = model.rotary(rows.positions)
    return InputSequence(task, rows.inputs.cpu(), cos.cpu(), sin.cpu(), rows.visible, rows.roles)


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
