"""Learning gains by Adam on part of the samples; the samples held out say which of them, if any, are kept.

The understanding expert is learned by the KL of next tokens, the generation expert by the error of velocities. Adam's
steps do not depend on a loss's size, so one rate serves both. What is unlike any sample, such as a token that none of
them uses, is not judged and may get worse.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import WorkbenchError
from core.evaluation import statistics
from core.quantization.groups import Expert
from core.quantization.refine import Refine
from core.refinement.gains import Gains
from core.refinement.objectives import Item, Part

Ask = Callable[[Sequence[int]], list[Tensor]]
"""The loss of each of some items, by their numbers."""

Losses = dict[Part, list[float]]
"""The mean loss of each sample, by part."""

PART: dict[Expert, Part] = {"und": "kl", "gen": "velocity"}
"""What each expert is learned by."""

CHECKS = 8
"""How often in the course of learning the samples held out are asked."""

SURE = 2
"""Standard errors that a gain has to exceed: of many samples, one in forty would by chance."""

_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Verdict:
    """What came of learning one expert's gains. Losses are means over the samples held out."""

    expert: Expert
    before: dict[Part, float]
    after: dict[Part, float]
    """Of the best gains that were tried, kept or not."""
    error: dict[Part, float]
    """Standard error of the change from ``before`` to ``after``, which is paired by samples."""
    steps: int
    best: int
    """Step after which the gains were best; 0 if none were worth keeping."""
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def in_words(self) -> str:
        """For logs."""
        losses = ", ".join(
            f"{part} {before:.3e} to {self.after[part]:.3e} (change ± {self.error[part]:.1e})"
            for part, before in self.before.items()
        )
        end = f"kept as after step {self.best}" if self.kept else "not kept"
        return f"{self.expert} expert refined in {self.steps} steps: {losses} on samples held out, {end}"


@dataclass(frozen=True)
class Divided:
    """Numbers of the items to learn from and of those held out."""

    learned: list[int]
    held_out: list[int]


def divide(items: Sequence[Item], refine: Refine) -> Divided:
    """Divide items by their samples, those of each part in the same shares; at least two of three are held out, for
    one has no standard error.
    """
    chance = random.Random(refine.seed)
    apart: set[int] = set()
    for part in PART.values():
        samples = sorted({item.sample for item in items if item.part == part})
        count = min(max(2, round(refine.held_out * len(samples))), len(samples) - 1)
        apart |= set(chance.sample(samples, max(0, count)))
    return Divided(
        [number for number, item in enumerate(items) if item.sample not in apart],
        [number for number, item in enumerate(items) if item.sample in apart],
    )


class Learner:
    """Learns the gains of one model, an expert at a time."""

    def __init__(
        self,
        items: Sequence[Item],
        losses: Ask,
        divided: Divided,
        refine: Refine,
        pass_tokens: int,
        progress: Callable[[int, int, str], None],
    ) -> None:
        """``pass_tokens``: how many tokens go through the model at once, unless one item has more."""
        self._items = items
        self._losses = losses
        self._divided = divided
        self._refine = refine
        self._pass_tokens = pass_tokens
        self._progress = progress

    def run(self, expert: Expert, gains: Gains) -> Verdict | None:
        """Learn an expert's gains and leave the best of them, or zeros; None where no sample is of its kind.

        Raises:
            WorkbenchError: a loss that is not finite; the step is named.
        """
        part, refine = PART[expert], self._refine
        learned = [number for number in self._divided.learned if self._items[number].part == part]
        if not learned:
            return None
        # What the generation expert does has no part in answers.
        asked = [n for n in self._divided.held_out if expert == "und" or self._items[n].part == part]
        before = self._check(expert, 0, asked)
        means = {key: statistics.mean(values).value for key, values in before.items()}
        after, least, best = before, math.inf, 0
        kept = {name: gain.detach().clone() for name, gain in gains.items()}
        for gain in gains.values():
            gain.requires_grad_(True)
        optimizer = torch.optim.Adam(gains.values(), lr=refine.rate, betas=_BETAS)
        chance, queue = random.Random(refine.seed), list[int]()
        checks = {-(-refine.steps * check // CHECKS) for check in range(1, CHECKS + 1)}
        for step in range(1, refine.steps + 1):
            self._progress(step - 1, refine.steps, f"refining {expert}")
            for group in optimizer.param_groups:
                group["lr"] = refine.rate * schedule(step, refine.steps)
            optimizer.zero_grad()
            chosen = []
            for _ in range(min(refine.batch, len(learned))):
                queue = queue or chance.sample(learned, len(learned))
                chosen.append(queue.pop())
            for numbers in self._passes(chosen):
                loss = torch.stack(self._losses(numbers)).sum() / max(means[part], 1e-30) / len(chosen)
                self._finite(expert, step, float(loss.detach()))
                loss.backward()
            optimizer.step()
            if step in checks:
                now = self._check(expert, step, asked)
                value = statistics.mean([_relative(now[key], before[key]) for key in before]).value
                if not gained(part, before, now):
                    value += 1.0  # below 1 is what may be kept
                if value < least:
                    after, least = now, value
                    if value < 1:
                        best = step
                        kept = {name: gain.detach().clone() for name, gain in gains.items()}
        for name, gain in gains.items():
            gain.requires_grad_(False).copy_(kept[name])
            gain.grad = None
        return Verdict(
            expert,
            means,
            {key: statistics.mean(values).value for key, values in after.items()},
            {key: _change(values, after[key])[1] for key, values in before.items()},
            refine.steps,
            best,
            best > 0,
        )

    def _passes(self, chosen: Sequence[int]) -> list[list[int]]:
        """The chosen items in order, as many at once as go through the model together."""
        found: list[list[int]] = []
        room = 0
        for number in chosen:
            tokens = self._items[number].tokens
            if tokens > room:
                found.append([])
                room = self._pass_tokens
            found[-1].append(number)
            room -= tokens
        return found

    @torch.no_grad()
    def _check(self, expert: Expert, step: int, asked: Sequence[int]) -> Losses:
        found: dict[Part, dict[int, list[float]]] = {}
        for numbers in self._passes(asked):
            for number, loss in zip(numbers, self._losses(numbers), strict=True):
                self._finite(expert, step, float(loss))
                item = self._items[number]
                found.setdefault(item.part, {}).setdefault(item.sample, []).append(float(loss))
        return {
            part: [math.fsum(values) / len(values) for values in samples.values()]
            for part, samples in found.items()
        }

    def _finite(self, expert: Expert, step: int, value: float) -> None:
        if not math.isfinite(value):
            raise WorkbenchError(
                f"refine: the loss of the {expert} expert is {value} at step {step}; lower refine.rate in the recipe, "
                "or leave the section out"
            )


def gained(part: Part, before: Losses, now: Losses) -> bool:
    """Whether ``part`` fell by more than two standard errors of its change, and no other rose by more than one."""
    for key, values in before.items():
        change, error = _change(values, now[key])
        if change >= -SURE * error if key == part else change > error:
            return False
    return True


def schedule(step: int, steps: int) -> float:
    """Share of the rate at a step, from 1 on: rising over a tenth of the steps, then falling as a cosine does."""
    rise = min(1.0, step / max(1, steps // 10))
    return rise * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _change(before: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """Mean change of at least two samples, and its standard error."""
    change = statistics.paired_difference(before, now)
    assert change.error is not None, "divide holds out two samples of a part, or none"
    return change.value, change.error


def _relative(now: Sequence[float], before: Sequence[float]) -> float:
    new, old = math.fsum(now), math.fsum(before)
    return new / old if old > 0 else 1.0 if new == old else math.inf
