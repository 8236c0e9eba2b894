"""What is evaluated and calibrated on: a sample, the suite it is of, and the settings it runs with.

Nothing here imports torch or decodes pixels until a sample's pictures or the suite's fingerprint are asked
for. ``core.evaluation.suites`` reads suites.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UsageError
from core.evaluation.visuals import ClipFile, DrawnClip, DrawnPicture, PictureFile
from core.lance.buckets import NUM_FRAMES, VIT_SIDE, check_frames
from core.lance.prompts import UNDERSTANDING_TASKS

if TYPE_CHECKING:
    from PIL import Image

    from core.lance.video import Clip

UNDERSTANDING = "x2t_image"
GENERATION = "t2i"
TEXT = "text"
"""Questions about nothing to be seen: not one of Lance's seven tasks, but the same path without a picture."""

PERPLEXITY = "perplexity"
"""Running text that is read and not answered; see ``core.evaluation.prose``."""

ANSWERING = (*UNDERSTANDING_TASKS, TEXT)
"""The tasks whose output is text."""

TASKS = (UNDERSTANDING, GENERATION, "x2t_video", "t2v", "i2v", "image_edit", "video_edit", TEXT)
"""The tasks that can be calibrated on and evaluated."""

DEFAULT_TASKS = (UNDERSTANDING, GENERATION)
"""What is calibrated on unless something else is asked for: together they reach every linear."""

UPSTREAM_SEED = 42
"""Upstream starts every prompt of a run from the same noise, drawn with this seed."""

PIXELS_PER_LATENT = 16

MAX_NEW_TOKENS = 256
"""Lance never answers at greater length."""


@dataclass(frozen=True)
class Sample:
    """One question about pictures, a clip or nothing, or one prompt to draw, film or edit by.

    ``question`` and ``instruction`` (the system's turn) are of the tasks that answer, ``prompt`` of the others.
    ``expected`` is the reference answer, None where unknown; ``shape`` and ``colour`` are what a drawn
    picture should show, "" where unknown; ``seed`` is the seed of the starting noise.
    """

    key: str
    task: str
    question: str = ""
    instruction: str = ""
    expected: str | None = None
    pictures: tuple[DrawnPicture | PictureFile, ...] = ()
    prompt: str = ""
    shape: str = ""
    colour: str = ""
    seed: int = UPSTREAM_SEED
    clips: tuple[DrawnClip | ClipFile, ...] = ()

    def visuals(self) -> list[Image.Image | Clip]:
        """The sample's pictures (RGB) and clips, read or drawn now."""
        return [source.load() for source in (*self.pictures, *self.clips)]

    def fingerprint(self) -> str:
        """SHA-256 over texts, seeds and the file bytes or drawn pixels of what is looked at; paths do not
        matter.
        """
        described = dataclasses.asdict(self) | {"pictures": [source.digest() for source in self.pictures]}
        described.pop("clips")
        if self.clips:
            described["clips"] = [source.digest() for source in self.clips]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Settings:
    """How samples are run: the size preset of pictures looked at, and size and sampler of pictures drawn."""

    resolution: str
    height: int
    width: int
    num_steps: int
    timestep_shift: float
    cfg_text_scale: float
    max_new_tokens: int = MAX_NEW_TOKENS
    num_frames: int = NUM_FRAMES

    @classmethod
    def combine(cls, *layers: dict[str, Any]) -> Settings:
        """Settings from dicts, later over earlier; keys that are no setting, and None values, are skipped.

        Raises:
                UsageError: a size Lance cannot draw, more frames than it has positions for, or a length of answers
                that is not Lance's.
        """
        names = {entry.name for entry in dataclasses.fields(cls)}
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= {key: value for key, value in layer.items() if key in names and value is not None}
        check_size(merged["height"], merged["width"])
        if not 1 <= merged.get("max_new_tokens", 1) <= MAX_NEW_TOKENS:
            raise UsageError(f"max_new_tokens {merged['max_new_tokens']}: wanted 1 to {MAX_NEW_TOKENS}")
        check_frames(int(merged.get("num_frames", NUM_FRAMES)))
        return cls(**merged)

    def recorded(self, tasks: Sequence[str]) -> dict[str, Any]:
        """The settings as data; the frame count only if one of ``tasks`` has one to choose."""
        found = dataclasses.asdict(self)
        if not set(tasks) & {"t2v", "i2v"}:
            del found["num_frames"]
        return found


@dataclass(frozen=True)
class Suite:
    """A named list of samples of one task; ``settings`` override the checkpoint's defaults."""

    name: str
    task: str
    samples: tuple[Sample, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    description: str = ""

    def head(self, limit: int | None) -> Suite:
        """The suite cut to its first ``limit`` samples.

        Raises:
            UsageError: a limit below one.
        """
        if limit is None:
            return self
        if limit < 1:
            raise UsageError(f"limit {limit}: wanted at least 1 sample")
        return dataclasses.replace(self, samples=self.samples[:limit])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the samples' fingerprints in order: equal for equal content wherever files lie."""
        parts = [self.task, *(sample.fingerprint() for sample in self.samples)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_size(height: int, width: int) -> None:
    """Refuse picture sizes that are no multiple of 16 px, the side of one latent.

    Raises:
        UsageError: names the nearest size that works.
    """
    for name, value in (("height", height), ("width", width)):
        if value < PIXELS_PER_LATENT or value % PIXELS_PER_LATENT:
            nearest = max(1, round(value / PIXELS_PER_LATENT)) * PIXELS_PER_LATENT
            raise UsageError(
                f"{name} {value}: wanted a multiple of {PIXELS_PER_LATENT} px; the nearest is {nearest}"
            )


def check_resolution(name: str) -> None:
    """Refuse a size preset that Lance does not have, before a model is loaded for it.

    Raises:
        UsageError: lists those there are.
    """
    if name not in VIT_SIDE:
        raise UsageError(f"{name}: no such resolution; known are {', '.join(VIT_SIDE)}")
