"""Joint training of the small Lance: answering questions about drawings, and drawing shapes from captions.

Understanding is trained by cross entropy on the answer's tokens and its end, generation by flow matching (velocity =
noise - data at x_t = (1 - t) data + t noise) with captions dropped now and then for guidance. Both losses go through
one optimizer step. Weights are float32, computation is bfloat16 under autocast on an accelerator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from core.demo.batched import BatchedLance, Captions
from core.demo.feeding import Feed
from core.demo.graphs import Repeated
from core.demo.monitor import Exam, labels, marks, prompts, recognised
from core.demo.optimizer import Optimizer
from core.demo.texts import Texts
from core.lance.model import Lance
from core.lance.sampler import Sampling

FLOW_WEIGHT = 0.2
"""Weight of the flow loss beside the cross entropy."""

DROPPED = 0.1
"""Share of captions left out, for guidance."""

DIVERGED = 3.0
"""Sum of both losses from which, after the first steps, training counts as diverged."""

SHIFT = 3.5
"""Flow times are drawn as the sampler's schedule spreads its steps."""


@dataclass(frozen=True)
class Plan:
    """How long and how much: ``seconds`` of wall clock, batch sizes, schedule."""

    seconds: float
    pictures: int = 160
    questions: int = 3
    captions: int = 96
    warmup: int = 300
    decay_from: float = 0.5
    """Share of the time after which the learning rate falls linearly to zero."""
    peak: float = 1.0
    """Factor on all learning rates; lower for a warm restart."""
    exam_every: float = 60.0
    seed: int = 0


@dataclass
class Paintings:
    """What generation learns from: latents float32 [N, 36, 48] and their captions' ids [N, n] and lengths [N]."""

    latents: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor


@dataclass
class Figures:
    """What training came to, for the model card."""

    steps: int = 0
    seconds: float = 0.0
    pictures_drawn: int = 0
    exams: list[tuple[float, int, float]] = field(default_factory=list)
    """(seconds, step, share exactly right) of each examination on the way."""
    kept: int = 0
    """The step whose weights were written: the best at an examination, or the last."""
    final: dict[str, float] = field(default_factory=dict)
    """Share exactly right of each kind, and ``all``, with the weights that were written."""
    recognised: float = 0.0
    """Share of drawn pictures that show what their caption asks for, with the weights that were written."""
    setbacks: int = 0
    """How often training diverged and was set back to an earlier state, with a lower rate from then on."""


def initialise(model: Lance, seed: int) -> None:
    """Weights to start from: projections back into the residual stream at zero, the others at 1 / sqrt(inputs)."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or "norm" in name.rsplit(".", 2)[-2] or name.endswith("ln_q.weight"):
            nn.init.ones_(parameter)
        elif parameter.ndim == 1 or name == "llm2vae.weight":
            nn.init.zeros_(parameter)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=0.3)
        elif "lm_head" in name:
            nn.init.normal_(parameter, std=0.01)
        elif any(part in name for part in ("o_proj", "down_proj", "attn.proj")):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))


def question_loss(
    model: BatchedLance, pixels: Any, segments: Any, starts: Any, counts: Any, dtype: torch.dtype
) -> torch.Tensor:
    """Mean cross entropy over all answer tokens of a batch."""
    logits = model.answers(pixels, segments, starts, dtype)
    wanted = labels(segments, starts, counts)
    return functional.cross_entropy(logits.float().flatten(0, 2), wanted.flatten(), ignore_index=-100)


def flow_loss(
    model: BatchedLance, captions: Captions, data: Any, noise: Any, times: Any, dtype: torch.dtype
) -> torch.Tensor:
    """Mean squared error of the predicted velocity."""
    mix = times[:, None, None]
    predicted = model.velocity(captions, (1 - mix) * data + mix * noise, times, dtype)
    return functional.mse_loss(predicted.float(), noise - data)


def rate_factor(plan: Plan, step: int, share: float) -> float:
    """Factor on the learning rates at ``share`` of the time: warm up, hold, fall linearly to zero."""
    fall = (1 - share) / (1 - plan.decay_from)
    return plan.peak * min(1.0, (step + 1) / plan.warmup) * max(0.0, min(1.0, fall))


class Trainer:
    """One training: model, feeds, optimizer and examinations."""

    def __init__(
        self,
        model: Lance,
        texts: Texts,
        feed: Feed,
        paintings: Paintings,
        autoencoder: Any,
        paper: Exam,
        plan: Plan,
    ) -> None:
        self.model, self.texts, self.feed, self.paintings = model, texts, feed, paintings
        self.autoencoder, self.paper, self.plan = autoencoder, paper, plan
        self.device = model.device
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.plain = BatchedLance(model, texts).to(self.device)
        self.batched = BatchedLance(model, texts, compiled=self.on_gpu).to(self.device)
        self.batched.question_tables(plan.questions, self.device)
        self.optimizer = Optimizer(model)
        self.generator = torch.Generator(self.device).manual_seed(plan.seed)
        self.figures = Figures()

    def _draw(self) -> tuple[torch.Tensor, ...]:
        """One batch of everything a step reads."""
        plan, works, device = self.plan, self.paintings, self.device
        batch = self.feed.batch(plan.pictures, plan.questions, self.generator)
        rows = torch.randint(len(works.latents), (plan.captions,), generator=self.generator, device=device)
        data = works.latents[rows]
        noise = torch.randn(data.shape, generator=self.generator, device=device)
        chance = torch.rand(3, plan.captions, generator=self.generator, device=device)
        times = SHIFT * chance[0] / (1 + (SHIFT - 1) * chance[0])
        return (
            batch.pixels, batch.segments, batch.starts, batch.counts, works.ids[rows], works.lengths[rows],
            chance[1] < DROPPED, chance[2] < 0.75, data, noise, times,
        )  # fmt: skip

    def _learn(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One training step on a batch of ``_draw``; returns the two losses."""
        pixels, segments, starts, counts, ids, lengths, dropped, shifted, data, noise, times = given
        captions = Captions(ids, lengths, dropped, shifted)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu, cache_enabled=False):
            asked = question_loss(self.batched, pixels, segments, starts, counts, self.dtype)
            flow = flow_loss(self.batched, captions, data, noise, times, self.dtype)
        (asked + FLOW_WEIGHT * flow).backward()
        self.optimizer.step()
        self.optimizer.clear()
        return asked.detach(), flow.detach()

    def run(self, keep: Callable[[], None]) -> Figures:
        """Train until the plan's time is over; prints a line now and then.

        ``keep`` is called to write the weights whenever an examination on the way, or the last one, finds them the best
        so far. Afterwards the model holds the weights that were kept, and the figures are theirs.
        """
        plan, figures = self.plan, self.figures
        prepared = time.monotonic()
        step_of = Repeated(self._learn, self._draw())  # its first steps have a rate of zero
        begun = examined = spoken = time.monotonic()
        print(f"first steps and graph: {begun - prepared:.0f} s", flush=True)
        state = self.optimizer.state()
        kept, caution = [tensor.clone() for tensor in state], 1.0
        step, best = 0, -1.0
        written = [parameter.detach().clone() for parameter in self.model.parameters()]

        def examine() -> dict[str, float]:
            nonlocal best
            result = marks(self.plain, self.paper, self.dtype)
            if result["all"] >= best:
                best, figures.final, figures.kept = result["all"], result, step
                torch._foreach_copy_(written, [parameter.detach() for parameter in self.model.parameters()])
                keep()
            return result

        while (share := (time.monotonic() - begun) / plan.seconds) < 1:
            self.feed.pump()
            self.optimizer.set_factor(caution * rate_factor(plan, step, share))
            asked, flow = step_of(*self._draw())
            step += 1
            if step % 20 == 0:
                loss = asked.item() + flow.item()  # also: the clock counts finished steps
                now = time.monotonic()
                if not math.isfinite(loss) or (loss > DIVERGED and step > 500):
                    caution *= 0.7
                    figures.setbacks += 1
                    torch._foreach_copy_(state, kept)
                    print(
                        f"step {step} {now - begun:.0f} s loss {loss}: back to the last good state",
                        flush=True,
                    )
                elif step % 400 == 0 and bool(torch.stack(torch._foreach_norm(state)).isfinite().all()):
                    torch._foreach_copy_(kept, state)
                if now - spoken > 10:
                    spoken = now
                    print(
                        f"step {step} {now - begun:.0f} s ce {asked.item():.4f} flow {flow.item():.4f} "
                        f"drawn {self.feed.drawn}",
                        flush=True,
                    )
            if time.monotonic() - examined > plan.exam_every:
                examined = time.monotonic()
                result = examine()
                figures.exams.append((examined - begun, step, result["all"]))
                missed = {k: round(v, 2) for k, v in result.items() if v < 0.95 and k != "all"}
                print(
                    f"exam at {examined - begun:.0f} s, step {step}: {result['all']:.3f}; below 0.95: {missed}",
                    flush=True,
                )
        figures.steps, figures.seconds = step, time.monotonic() - begun
        figures.pictures_drawn = self.feed.drawn
        examine()
        torch._foreach_copy_([parameter.detach() for parameter in self.model.parameters()], written)
        figures.recognised = recognised(
            self.plain, self.autoencoder, self.texts, prompts(100), Sampling(), self.dtype
        )
        return figures
