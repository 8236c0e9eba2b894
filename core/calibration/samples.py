"""What a calibration runs: questions and captions of the drawn demo world, or a user's own in Lance's
format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.demo import NAME as DEMO
from core.errors import UsageError
from core.evaluation import suites
from core.evaluation.suites import GENERATION, TASKS, Sample
from core.evaluation.visuals import DrawnPicture
from core.files import sha256_text
from core.lance.prompts import INSTRUCTION_IMAGE

DRAWN_FROM = 10**12
"""First seed of drawn calibration samples, out of reach of the seeds that training and suites draw from."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of a calibration, task by task, and settings that override the checkpoint's."""

    samples: tuple[Sample, ...]
    settings: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """The tasks it has samples of."""
        return [task for task in TASKS if any(sample.task == task for sample in self.samples)]

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """SHA-256 over the samples' contents and the settings they run with."""
        contents = [sample.fingerprint() for sample in self.samples]
        return sha256_text("\n".join([*contents, json.dumps(settings, sort_keys=True)]))


def drawn(task: str, count: int, seed: int) -> list[Sample]:
    """``count`` samples of the demo world, all kinds of question in turn; other seeds share none of them."""
    from core.demo.captions import caption
    from core.demo.drawing import KINDS, draw

    first = DRAWN_FROM + seed * 1_000_000
    found = []
    for number in range(first, first + count):
        if task == GENERATION:
            prompt = caption(number).prompt
            found.append(Sample(f"caption-{number}", task, prompt=prompt, seed=number % (1 << 31)))
        else:
            # A step coprime to the number of kinds visits them all and mixes the families from the start.
            kind = KINDS[(number - first) * 8 % len(KINDS)]
            question = draw(kind, number)
            found.append(
                Sample(
                    f"{kind}-{number}",
                    task,
                    question=question.question,
                    instruction=INSTRUCTION_IMAGE,
                    expected=question.answer,
                    pictures=(DrawnPicture(kind, number),),
                )
            )
    return found


def sample_set(checkpoint: str, tasks: Sequence[str], count: int, suite: str | None, seed: int) -> SampleSet:
    """The samples to calibrate ``checkpoint`` on.

    Args:
        checkpoint: its name; the embedded demo has samples of its own, any other needs a suite.
        tasks: of which tasks; with a suite, its task must be among them.
        count: how many of each task.
        suite: name or path of a suite whose first ``count`` samples are taken instead of drawn ones.
        seed: which drawn samples.

    Raises:
        UsageError: an unknown task, no samples asked for, or no suite where one is needed.
        DataError: the suite's file cannot be read.
    """
    for task in tasks:
        if task not in TASKS:
            raise UsageError(f"task {task!r} cannot be calibrated; tasks are {', '.join(TASKS)}")
    if count < 1 or not tasks:
        raise UsageError(f"{count} samples of {len(tasks)} tasks: at least one of each is needed")
    if suite is not None:
        found = suites.load(suite)
        if found.task not in tasks:
            raise UsageError(f"{suite}: holds {found.task} samples, asked for {', '.join(tasks)}")
        return SampleSet(found.samples[:count], found.settings)
    if checkpoint != DEMO:
        raise UsageError(
            f"{checkpoint}: calibrate it on samples of its own kind: give --suite FILE, a JSON file in Lance's "
            "format (one per task; `calibrations merge` joins the results)"
        )
    return SampleSet(tuple(sample for task in tasks for sample in drawn(task, count, seed)), {})


def record_keys(samples: Sequence[Sample]) -> list[str]:
    """``task/key`` of every sample."""
    return [f"{sample.task}/{sample.key}" for sample in samples]
