"""What a calibration runs: samples of the drawn demo world, plain questions, or a user's own in Lance's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.calibration.questions import QUESTIONS
from core.demo import NAME as DEMO
from core.errors import UsageError
from core.evaluation import suites
from core.evaluation.lance_samples import INSTRUCTION_TEXT
from core.evaluation.overlap import Evaluated
from core.evaluation.samples import GENERATION, TASKS, TEXT, UNDERSTANDING, Sample
from core.evaluation.visuals import CAPTIONED, DrawnClip, DrawnPicture
from core.files import sha256_text
from core.lance.prompts import INSTRUCTION_IMAGE, INSTRUCTION_VIDEO

MIXED = "mixed"
"""Asked for like a task: forward passes that each pack one sample of every other task into one sequence."""

DEFAULT_SAMPLES = 16
"""Samples of each task, if nothing else is asked for."""

MOST_DRAWN = 1_000_000
"""As many can be drawn with one seed."""

DRAWN_FROM = 10**12
"""First seed of drawn calibration samples, out of reach of the seeds that training and suites draw from."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of a calibration, task by task, and settings by task that override the checkpoint's."""

    samples: tuple[Sample, ...]
    settings: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    mixed: int = 0
    """Sequences of one sample of every task."""
    evaluated: tuple[str, ...] = ()
    """``task/key`` of samples that are evaluated on too, which was forced."""

    @property
    def tasks(self) -> list[str]:
        """The tasks it has samples of, ``mixed`` among them if it packs them together."""
        found = [task for task in TASKS if any(sample.task == task for sample in self.samples)]
        return [*found, MIXED] if self.mixed else found

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """SHA-256 over the samples' contents and the settings they run with."""
        contents = [sample.fingerprint() for sample in self.samples]
        mixed = [f"mixed {self.mixed}"] if self.mixed else []
        return sha256_text("\n".join([*contents, *mixed, json.dumps(settings, sort_keys=True)]))


def drawn(task: str, count: int, seed: int, evaluated: Evaluated | None = None) -> list[Sample]:
    """``count`` samples of the demo world, all kinds of question in turn; other seeds share none of them.

    A prompt that happens to be evaluated on is passed over.

    Raises:
        UsageError: more than one seed draws.
    """
    if count > MOST_DRAWN:
        raise UsageError(f"{count} samples of {task}: one seed draws at most {MOST_DRAWN:,}; ask for fewer")
    known = evaluated or Evaluated()
    found: list[Sample] = []
    for sample in _world(task, seed):
        if len(found) == count:
            break
        if known.where(sample) is None:
            found.append(sample)
    return found


def _world(task: str, seed: int) -> Iterator[Sample]:
    from core.demo.captions import caption
    from core.demo.drawing import KINDS, draw
    from core.demo.moving import instruction, moving

    first = DRAWN_FROM + seed * MOST_DRAWN
    for number in range(first, first + MOST_DRAWN):
        noise = number % (1 << 31)
        if task == GENERATION:
            yield Sample(f"caption-{number}", task, prompt=caption(number).prompt, seed=noise)
        elif task == UNDERSTANDING:
            # A step coprime to the number of kinds visits them all and mixes the families from the start.
            kind = KINDS[(number - first) * 8 % len(KINDS)]
            question = draw(kind, number)
            yield Sample(
                f"{kind}-{number}",
                task,
                question=question.question,
                instruction=INSTRUCTION_IMAGE,
                expected=question.answer,
                pictures=(DrawnPicture(kind, number),),
            )
        elif task == "x2t_video":
            clip = moving(number)
            yield Sample(
                f"moving-{number}",
                task,
                question=clip.question,
                instruction=INSTRUCTION_VIDEO,
                expected=clip.answer,
                clips=(DrawnClip(number),),
            )
        elif task == "t2v":
            yield Sample(f"moving-{number}", task, prompt=moving(number).prompt, seed=noise)
        elif task == "video_edit":
            clips = (DrawnClip(number),)
            yield Sample(f"moving-{number}", task, prompt=instruction(number), seed=noise, clips=clips)
        else:
            pictures = (DrawnPicture(CAPTIONED, number),)
            prompt = moving(number).prompt if task == "i2v" else instruction(number)
            yield Sample(f"caption-{number}", task, prompt=prompt, seed=noise, pictures=pictures)


def plain_questions(count: int, seed: int) -> list[Sample]:
    """``count`` questions about nothing to be seen, another stretch of the list for another seed.

    Raises:
        UsageError: more than there are.
    """
    if count > len(QUESTIONS):
        raise UsageError(
            f"{count} samples of {TEXT}: there are {len(QUESTIONS)}; ask for fewer, or give your own as a .txt file"
        )
    places = [(seed * count + number) % len(QUESTIONS) for number in range(count)]
    return [Sample(f"plain-{place:02}", TEXT, QUESTIONS[place], INSTRUCTION_TEXT) for place in places]


def sample_set(
    checkpoint: str,
    tasks: Sequence[str],
    count: int,
    files: Sequence[str],
    seed: int,
    *,
    evaluated: Evaluated | None = None,
    force: bool = False,
) -> SampleSet:
    """The samples to calibrate ``checkpoint`` on.

    Args:
        checkpoint: its name; the embedded demo has samples of its own, any other needs files, except for text.
        tasks: of which tasks; files must be of some of them. ``mixed`` packs one of each into a sequence too.
        count: how many of each task.
        files: names or paths of suites whose first ``count`` samples are taken; tasks that none is of are drawn.
        seed: which drawn samples.
        evaluated: what is evaluated on; the suites that come along if not given.
        force: take samples that are evaluated on, and note which they are.

    Raises:
        UsageError: an unknown task, no samples asked for, no file where one is needed, or samples that are evaluated
            on.
        DataError: a file cannot be read.
    """
    known = evaluated or Evaluated()
    wanted = [task for task in tasks if task != MIXED]
    for task in wanted:
        if task not in TASKS:
            raise UsageError(f"task {task!r} cannot be calibrated; tasks are {', '.join((*TASKS, MIXED))}")
    if count < 1 or not wanted:
        raise UsageError(f"{count} samples of {len(wanted)} tasks: at least one of each is needed")
    samples: dict[str, list[Sample]] = {}
    settings: dict[str, dict[str, Any]] = {}
    twice: list[str] = []
    for name in files:
        suite = suites.load(name, task=wanted[0] if len(wanted) == 1 else None)
        if suite.task not in wanted:
            raise UsageError(f"{name}: holds {suite.task} samples, asked for {', '.join(wanted)}")
        taken = list(suite.samples[:count])
        found = [(sample, place) for sample in taken if (place := known.where(sample)) is not None]
        if found and not force:
            raise UsageError(
                f"{name}: sample {found[0][0].key} is evaluated on, in {found[0][1]}; a score on it would say little "
                f"of a variant calibrated on it. Leave it out ({len(found)} of {len(taken)} are), or give --force"
            )
        twice += record_keys([sample for sample, _ in found])
        samples.setdefault(suite.task, []).extend(taken)
        settings.setdefault(suite.task, {}).update(suite.settings)
    for task in wanted:
        if task in samples:
            continue
        if task == TEXT:
            samples[task] = plain_questions(count, seed)
        elif checkpoint == DEMO:
            samples[task] = drawn(task, count, seed, known)
            settings[task] = _drawn_settings(task)
        else:
            raise UsageError(
                f"{checkpoint}: calibrate it on samples of its own kind: give --suite FILE of {task}, a JSON file in "
                "Lance's format"
            )
    most = max(map(len, samples.values()))
    ordered = tuple(sample for task in wanted for sample in samples.pop(task, []))
    return SampleSet(ordered, settings, most if MIXED in tasks else 0, tuple(twice))


def _drawn_settings(task: str) -> dict[str, Any]:
    """What a drawn task changes of the demo's defaults: its clips are short."""
    from core.demo.moving import FRAMES

    return {"num_frames": FRAMES} if task in ("t2v", "i2v") else {}


def record_keys(samples: Sequence[Sample]) -> list[str]:
    """``task/key`` of every sample."""
    return [f"{sample.task}/{sample.key}" for sample in samples]
