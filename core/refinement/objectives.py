"""What a refinement is measured by: how far a model is from what the original said of calibration samples.

``of_lance`` and ``of_text`` ask the original once and keep what it said on the host: the likeliest ``TOP`` tokens of
every answer position, or a velocity. The result asks any model the same, open to gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from core.calibration.texts import Piece
from core.evaluation import likelihood, requests, trajectory
from core.evaluation.drawings import sampling
from core.evaluation.likelihood import LogProbs
from core.evaluation.samples import ANSWERING, Sample, Settings
from core.huggingface.loading import CausalLM
from core.lance.joint import Stream, hidden_states
from core.lance.loading import Pipeline
from core.lance.packing import Packed
from core.lance.sampler import Trace, sample

Part = Literal["kl", "velocity"]
"""``kl`` in nats a token; ``velocity``, the squared error as a share of the velocity's square."""

Progress = Callable[[int, int], None]

TOP = 1024
"""Tokens of a position whose probabilities are kept; all others count as one."""

ROWS = 64
"""Positions whose divergence is taken at a time: it is computed in float64."""


@dataclass(frozen=True)
class Item:
    """One thing the original said: its next tokens in an answer or a text, or its velocity at one flow time.

    Items of one ``sample`` are never divided between learning and checking.
    """

    part: Part
    sample: int
    tokens: int
    """That are run for it."""
    asked: Stream | Sequence[int]
    """A Lance's sequence, or a text's tokens."""
    said: LogProbs | Tensor


class LanceObjective:
    """What a Lance said, and how far a Lance is from it."""

    def __init__(self, items: Sequence[Item], vocabulary: int) -> None:
        """``vocabulary``: how many ids the tokenizer has; the head may have more, which are never chosen."""
        self.items = items
        self._vocabulary = vocabulary

    def losses(self, pipeline: Pipeline, chosen: Sequence[int]) -> list[Tensor]:
        """The loss of each chosen item, float64 scalars, from one pass through the decoder."""
        model, items = pipeline.model, [self.items[index] for index in chosen]
        streams = [item.asked for item in items if isinstance(item.asked, Stream)]
        found = []
        for item, stream, hidden in zip(items, streams, hidden_states(model, streams), strict=True):
            if isinstance(item.said, LogProbs):
                logits = model.logits(hidden[-len(stream.answer) - 1 : -1])
                found.append(divergence(item.said, logits[:, : self._vocabulary]))
            else:
                found.append(relative_square(item.said, _target(pipeline, stream, hidden)))
        return found


class TextObjective:
    """What a causal LM said of texts, and how far one is from it."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def losses(self, model: CausalLM, chosen: Sequence[int]) -> list[Tensor]:
        """The loss of each chosen item, float64 scalars."""
        found = []
        for index in chosen:
            item = self.items[index]
            assert isinstance(item.said, LogProbs) and not isinstance(item.asked, Stream)
            found.append(divergence(item.said, _text_logits(model, item.asked)))
        return found


def divergence(said: LogProbs, logits: Tensor) -> Tensor:
    """Mean KL(said || now) in nats over the positions of ``logits`` float32 [T, V]; float64, differentiable."""
    total = logits.new_zeros((), dtype=torch.float64)
    for start in range(0, len(logits), ROWS):
        part = slice(start, start + ROWS)
        now, kept = torch.log_softmax(logits[part].double(), -1), said.values[part].to(logits.device)
        if said.ids is not None and said.rest is not None:
            ids = said.ids[part].to(logits.device).long()
            rest = now.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
            now = torch.cat([now.gather(-1, ids), rest], -1)
            kept = torch.cat([kept, said.rest[part, None].to(logits.device)], -1)
        total = total + likelihood.divergence(kept, now).sum()
    return total / len(logits)


def relative_square(said: Tensor, now: Tensor) -> Tensor:
    """``||now - said||^2 / ||said||^2``, float64, differentiable."""
    wanted = said.to(now.device).double()
    return (now.double() - wanted).square().sum() / wanted.square().sum()


def of_lance(
    pipeline: Pipeline, samples: Sequence[Sample], settings: Mapping[str, Settings], progress: Progress
) -> LanceObjective:
    """Ask the original ``pipeline``: greedy answers, and velocities at steps spread over the sampler's own way, with
    and without the caption where the step is guided.
    """
    vocabulary = len(pipeline.tokenizer)
    items: list[Item] = []
    for number, one in enumerate(samples):
        progress(number, len(samples))
        found = _answer if one.task in ANSWERING else _drawing
        for stream in found(pipeline, one, settings[one.task]):
            with torch.no_grad():
                hidden = hidden_states(pipeline.model, [stream])[0]
                if stream.answer:
                    logits = pipeline.model.logits(hidden[-len(stream.answer) - 1 : -1])[:, :vocabulary]
                    said: LogProbs | Tensor = likelihood.log_probs(logits, TOP, TOP)
                else:
                    said = _target(pipeline, stream, hidden).cpu()
            items.append(Item("kl" if stream.answer else "velocity", number, len(hidden), stream, said))
    return LanceObjective(items, vocabulary)


def of_text(model: CausalLM, pieces: Sequence[Piece], progress: Progress) -> TextObjective:
    """Ask the original ``model`` for the next tokens of ``pieces``."""
    items = []
    for number, piece in enumerate(pieces):
        progress(number, len(pieces))
        with torch.no_grad():
            logits = _text_logits(model, piece.tokens)
        said = likelihood.log_probs(logits, TOP, TOP)
        items.append(Item("kl", number, len(piece.tokens), piece.tokens, said))
    return TextObjective(items)


def _text_logits(model: CausalLM, tokens: Sequence[int]) -> Tensor:
    """Logits float32 [len(tokens) - 1, V] of every token but the first."""
    ids = torch.tensor([list(tokens[:-1])], device=model.device)
    logits: Tensor = model.model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def _target(pipeline: Pipeline, stream: Stream, hidden: Tensor) -> Tensor:
    """Velocity float32 [K, 48] of the target tokens that are not given."""
    velocity = pipeline.model.velocity(hidden[-stream.packed.target.length :][1:-1])
    assert stream.times is not None
    return velocity[(stream.times > 0).to(velocity.device)]


def _answer(pipeline: Pipeline, one: Sample, settings: Settings) -> list[Stream]:
    with torch.inference_mode():
        read = requests.question(pipeline, one, requests.request(one, settings))
        tokens = [token for token, _ in read.steps(settings.max_new_tokens)]
    return [_plain(Stream(read.packed, read.features, answer=tokens))]


def _drawing(pipeline: Pipeline, one: Sample, settings: Settings) -> list[Stream]:
    with torch.inference_mode():
        scene, trace = requests.scene(pipeline, requests.request(one, settings)), Trace()
        drawing, chosen = scene.drawing, sampling(settings)
        velocities = pipeline.engine.velocities(drawing) if pipeline.engine else drawing.velocities
        sample(scene.start.to(pipeline.device), velocities, chosen, fixed=drawing.fixed, trace=trace)
        times, latents = trajectory.points(trace)
    found = []
    for time, x in zip(times.tolist(), latents, strict=True):
        stream = Stream(
            drawing.packed, drawing.features, drawing.sources, latents=x, times=drawing.times(time)
        )
        found.append(_plain(stream))
        if chosen.guided(time):
            found.append(_plain(replace(stream, caption=False)))
    return found


def _plain(stream: Stream) -> Stream:
    """The stream on the host, in tensors of its own: those made in inference mode take no part in gradients."""

    def copy(value: Any) -> Any:
        return value.to("cpu", copy=True) if isinstance(value, Tensor) else value

    packed = Packed(
        copy(stream.packed.ids),
        stream.packed.splits,
        copy(stream.packed.positions),
        copy(stream.packed.uncond_positions),
    )
    return replace(
        stream,
        packed=packed,
        features=[copy(part) for part in stream.features],
        sources=[copy(part) for part in stream.sources],
        latents=copy(stream.latents),
        times=copy(stream.times),
    )
