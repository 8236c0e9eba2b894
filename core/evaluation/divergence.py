"""How far a loaded model moves when its weights are changed: KL of its own answers or of running text, and the error
of its velocities.

What the weights first said is kept in memory; ``measure`` asks again whatever they are by then. Pictures are looked at
once, as no weight that is changed here is part of the vision tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from core.evaluation import likelihood, requests, statistics, trajectory
from core.evaluation.drawings import sampling
from core.evaluation.likelihood import LogProbs
from core.evaluation.perplexity import KEPT, Reader
from core.evaluation.samples import ANSWERING, Sample, Settings
from core.lance import tasks
from core.lance.generation import Understanding
from core.lance.loading import Pipeline
from core.lance.prompts import Grid
from core.lance.requests import Request
from core.lance.sampler import Trace, sample

Score = Literal["kl", "velocity"]

PIECE = 256
"""Tokens of running text that are read at once."""


class Divergence(Protocol):
    """One kind of distance from what the weights first said."""

    score: Score
    """``kl`` in nats a token, or ``velocity``, a relative error."""

    def measure(self) -> list[float]:
        """The distance on each sample."""
        ...


def mean(divergence: Divergence) -> statistics.Mean:
    """The mean over samples with its standard error."""
    return statistics.mean(divergence.measure())


def power(score: Score, values: Sequence[float]) -> float:
    """What a distance costs, for adding up: a KL as it is, an error squared; both grow with the square of a
    disturbance, so those of independent disturbances add.
    """
    return statistics.mean([value if score == "kl" else value**2 for value in values]).value


class AnswerDivergence:
    """KL of a Lance's next tokens on the answers that it first gave."""

    score: Score = "kl"

    @torch.inference_mode()
    def __init__(self, pipeline: Pipeline, samples: Sequence[Sample], settings: Settings, limit: int) -> None:
        """Answer ``samples`` with at most ``limit`` tokens each."""
        self._pipeline = pipeline
        self._known: list[tuple[Sample, Sequence[Tensor], Sequence[Grid], list[int], LogProbs]] = []
        for one in samples:
            asked = requests.request(one, settings)
            features: Sequence[Tensor] = []
            grids: Sequence[Grid] = []
            if asked is not None:
                features, grids = tasks.vision_features(pipeline, asked.visuals, settings.resolution)
            read = self._read(one, features, grids)
            rows = read.context.cache.length
            tokens = [token for token, _ in read.steps(limit)]
            read.context.cache.length = rows
            self._known.append((one, features, grids, tokens, likelihood.log_probs(read.logits(tokens))))

    def _read(self, one: Sample, features: Sequence[Tensor], grids: Sequence[Grid]) -> Understanding:
        return Understanding(self._pipeline, features, grids, one.question, one.instruction)

    @torch.inference_mode()
    def measure(self) -> list[float]:
        """Mean KL of each answer."""
        return [
            float(likelihood.score(kept, self._read(one, seen, grids).logits(tokens), tokens).kl.mean())
            for one, seen, grids, tokens, kept in self._known
        ]


class VelocityDivergence:
    """Relative error of a Lance's velocities at the latents where its sampler first passed."""

    score: Score = "velocity"

    @torch.inference_mode()
    def __init__(self, pipeline: Pipeline, samples: Sequence[Sample], settings: Settings) -> None:
        """Sample each of ``samples``; nothing is decoded."""
        self._pipeline = pipeline
        self._known: list[tuple[Request | None, Tensor, Tensor, Tensor]] = []
        for one in samples:
            asked = requests.request(one, settings)
            scene, trace = requests.scene(pipeline, asked), Trace()
            start = scene.start.to(pipeline.device)
            drawing = scene.drawing
            sample(start, drawing.velocities, sampling(settings), fixed=drawing.fixed, trace=trace)
            times, latents = trajectory.points(trace)
            self._known.append((asked, times, latents, self._velocities(scene, times, latents)))

    def _velocities(self, scene: tasks.Scene, times: Tensor, latents: Tensor) -> Tensor:
        device = self._pipeline.device
        pairs = zip(times.tolist(), latents, strict=True)
        found = torch.stack([scene.drawing.velocity(x.to(device), time).float().cpu() for time, x in pairs])
        return found if scene.drawing.fixed is None else found[:, ~scene.drawing.fixed]

    @torch.inference_mode()
    def measure(self) -> list[float]:
        """Mean relative error over the kept steps of each sample."""
        found = []
        for asked, times, latents, kept in self._known:
            mine = self._velocities(requests.scene(self._pipeline, asked), times, latents)
            found.append(statistics.mean(list(map(trajectory.relative_error, kept, mine))).value)
        return found


class TextDivergence:
    """KL of a model's next tokens on pieces of running text."""

    score: Score = "kl"

    @torch.inference_mode()
    def __init__(self, reader: Reader, documents: Sequence[str], count: int) -> None:
        """Read ``count`` pieces, spread evenly over ``documents``."""
        self._reader = reader
        pieces: list[tuple[list[int], int]] = []
        for document in documents:
            tokens, given = reader.encode(document)
            size, first = min(PIECE, reader.context) - given, max(1, given)
            # Special tokens that begin a text begin every piece: many models lean on them.
            cut = [[*tokens[:given], *tokens[at : at + size]] for at in range(given, len(tokens), size)]
            pieces += [(piece, first) for piece in cut if len(piece) > first]
        count = min(count, len(pieces))
        chosen = [pieces[index * len(pieces) // count] for index in range(count)]
        self._known = [
            (piece, first, likelihood.log_probs(reader.logits(piece, first), KEPT, KEPT))
            for piece, first in chosen
        ]

    @torch.inference_mode()
    def measure(self) -> list[float]:
        """Mean KL of each piece."""
        return [
            float(likelihood.score(kept, self._reader.logits(piece, first), piece[first:]).kl.mean())
            for piece, first, kept in self._known
        ]


def of_lance(
    pipeline: Pipeline, samples: Sequence[Sample], settings: Settings, limit: int = 48
) -> list[Divergence]:
    """The distances that ``samples`` can tell: KL where some of them answer, velocities where some draw."""
    answering = [one for one in samples if one.task in ANSWERING]
    drawing = [one for one in samples if one.task not in ANSWERING]
    found: list[Divergence] = []
    if answering:
        found.append(AnswerDivergence(pipeline, answering, settings, limit))
    if drawing:
        found.append(VelocityDivergence(pipeline, drawing, settings))
    return found
