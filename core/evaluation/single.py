"""One run of any task on request, with a checkpoint or any variant; nothing is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.drawings import sampling
from core.evaluation.fit import check_samples
from core.evaluation.samples import Sample, Settings
from core.evaluation.visuals import ClipFile, PictureFile
from core.lance import tasks
from core.lance.generation import MAX_NEW_TOKENS, Answer
from core.lance.loading import Pipeline
from core.lance.position_table import check_checkpoint
from core.lance.preprocess import read_image
from core.lance.prompts import UNDERSTANDING_TASKS
from core.lance.requests import (
    Request,
    check_inputs,
    target_frames,
)
from core.lance.sampler import Sampling
from core.lance.video import check_name, read_clip, write_media
from core.runtime import enforcement, load_model, pick_device, pick_dtype
from core.runtime.memory import check_memory
from core.store import Store

Said = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to do, in files and numbers; what is None takes the checkpoint's default."""

    task: str
    prompt: str
    """Question, caption or editing instruction."""
    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    out: Path | None = None
    """Where a picture or clip is written; needed by tasks that make one."""
    instruction: str | None = None
    resolution: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    shift: float | None = None
    cfg: float | None = None
    seed: int = 42


@dataclass(frozen=True)
class Result:
    """What was made: ``text`` and its ``tokens``, or ``frames`` at ``out``; ``seconds`` without the loading."""

    checkpoint: str
    text: str | None
    tokens: list[int] | None
    out: str | None
    frames: int | None
    seconds: float
    device: str
    dtype: str
    kernel_path: str


class Session:
    """A checkpoint or variant opened for one request. The model is loaded when the request passed its checks."""

    def __init__(self, name: str, store: Store | None, device: str, dtype: str, say: Said) -> None:
        """Find the checkpoint.

        Raises:
            UsageError: an unknown name, device or dtype, or a model that is no Lance.
            CheckpointError: a damaged folder.
        """
        self.info = describe(resolve(name, store))
        if self.info.family != "lance":
            raise UsageError(
                f"{self.info.name}: is no Lance, and no other model runs its tasks; name a Lance"
            )
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.say = say

    def _load(self) -> tuple[Pipeline, str]:
        self.say(f"loading {self.info.name} on {self.device}")
        pipeline = load_model(self.info.path, self.device, self.dtype)
        return pipeline, enforcement(pipeline).kernel_path

    def _read(self, asked: Asked) -> tuple[Request, Sampling, Settings]:
        """Check everything that can be checked without the model, and read the files."""
        check_inputs(
            asked.task,
            len(asked.images),
            len(asked.videos),
            resolution=asked.resolution,
            height=asked.height,
            width=asked.width,
            num_frames=asked.frames,
            instruction=asked.instruction,
        )
        check_checkpoint(self.info.path, asked.task)
        chosen = {
            "resolution": asked.resolution,
            "height": asked.height,
            "width": asked.width,
            "num_frames": asked.frames,
            "num_steps": asked.steps,
            "timestep_shift": asked.shift,
            "cfg_text_scale": asked.cfg,
        }
        settings = Settings.combine(self.info.defaults, chosen)
        sampler = sampling(settings)
        clips = [read_clip(path) for path in asked.videos]
        if asked.out is not None:
            source = len(clips[0].frames) if clips else 1
            check_name(asked.out, target_frames(asked.task, asked.frames, source))
        request = Request(
            asked.task,
            asked.prompt,
            (*(read_image(path) for path in asked.images), *clips),
            asked.instruction,
            settings.resolution,
            asked.height,
            asked.width,
            asked.frames,
            asked.seed,
        )
        return request, sampler, settings

    def run(self, asked: Asked) -> Result:
        """Do what is asked; a picture or clip is written to ``asked.out``.

        Raises:
            UsageError: inputs or settings that do not fit the task, structure markers in the words, a name of another
                ending.
            DataError: a picture or video is missing or none.
            CheckpointError: a checkpoint not made for the task, or a damaged one.
            WorkbenchError: not enough memory; nothing was loaded.
        """
        request, sampler, settings = self._read(asked)
        check_memory(self.info, self.device, self.dtype)
        check_samples(self.info.path, [(_sample(asked), settings)], self.device, self.dtype)
        pipeline, kernel_path = self._load()
        teller = _Teller(self.say, sampler)
        started = time.perf_counter()
        made = tasks.run(
            pipeline, request, sampler, max_new_tokens=asked.max_new_tokens, progress=teller.progress
        )
        text, tokens, frames = None, None, None
        if isinstance(made, Answer):
            text, tokens = made.text, made.tokens
        else:
            frames = len(made.frames)
            if asked.out is not None:
                write_media(asked.out, made.frames)
        seconds = time.perf_counter() - started
        return Result(
            checkpoint=self.info.name,
            text=text,
            tokens=tokens,
            out=None if asked.task in UNDERSTANDING_TASKS or asked.out is None else str(asked.out),
            frames=frames,
            seconds=seconds,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            kernel_path=kernel_path,
        )


def _sample(asked: Asked) -> Sample:
    """What is asked as a sample, to tell what it takes."""
    asks = asked.task in UNDERSTANDING_TASKS
    return Sample(
        key="",
        task=asked.task,
        question=asked.prompt if asks else "",
        instruction=asked.instruction or "",
        pictures=tuple(PictureFile(path) for path in asked.images),
        prompt="" if asks else asked.prompt,
        clips=tuple(ClipFile(path) for path in asked.videos),
    )


class _Teller:
    """Puts progress into words, with the time left of a denoising."""

    def __init__(self, say: Said, sampler: Sampling) -> None:
        self._say = say
        # A guided step takes two passes through the model, another step one.
        self._passes = [1 + sampler.guided(time) for time in sampler.schedule()[0].tolist()]
        self._started = time.perf_counter()

    def progress(self, done: int, total: int, message: str) -> None:
        if message == "answering":
            self._say(f"token {done}")
        elif message == "denoising":
            passed, ahead = sum(self._passes[:done]), sum(self._passes[done:])
            left = round((time.perf_counter() - self._started) / passed * ahead)
            self._say(f"step {done} of {total}, {left // 60}:{left % 60:02d} left")
        else:
            self._say(message)
            self._started = time.perf_counter()
