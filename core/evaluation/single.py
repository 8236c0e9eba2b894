"""One answer or one picture on request, with a checkpoint or any variant; nothing is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.checkpoints.describe import describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.answers import check_resolution
from core.evaluation.drawings import sampling
from core.evaluation.suites import Settings
from core.files import replacing
from core.lance.generation import Understanding, decode_text, imagine
from core.lance.loading import Pipeline
from core.lance.preprocess import read_image
from core.lance.prompts import INSTRUCTION_IMAGE
from core.runtime import enforcement, load_model, pick_device, pick_dtype
from core.store import Store

Said = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What was made: ``text`` and its ``tokens``, or the picture at ``out``; ``seconds`` without the loading."""

    checkpoint: str
    text: str | None
    tokens: list[int] | None
    out: str | None
    seconds: float
    device: str
    dtype: str
    kernel_path: str


class Session:
    """A checkpoint or variant opened for one request. The model is loaded when the first request passed its checks."""

    def __init__(self, name: str, store: Store | None, device: str, dtype: str, say: Said) -> None:
        """Find the checkpoint.

        Raises:
            UsageError: an unknown name, device or dtype.
            CheckpointError: a damaged folder.
        """
        self.info = describe(resolve(name, store))
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.say = say

    def _load(self) -> tuple[Pipeline, str]:
        self.say(f"loading {self.info.name} on {self.device}")
        pipeline = load_model(self.info.path, self.device, self.dtype)
        return pipeline, enforcement(pipeline).kernel_path

    def _result(
        self, kernel_path: str, seconds: float, text: str | None, tokens: list[int] | None, out: Path | None
    ) -> Result:
        dtype = str(self.dtype).removeprefix("torch.")
        place = None if out is None else str(out)
        return Result(self.info.name, text, tokens, place, seconds, str(self.device), dtype, kernel_path)

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Path],
        prompt: str,
        instruction: str | None = None,
        resolution: str | None = None,
        max_new_tokens: int = 256,
    ) -> Result:
        """Answer a question about pictures in files.

        Raises:
            DataError: a picture is missing or none.
            UsageError: no picture, an unknown resolution, structure markers in the question.
        """
        if not images:
            raise UsageError("x2t_image needs a picture; give one with --image FILE")
        chosen = resolution or str(self.info.defaults["resolution"])
        check_resolution(chosen)
        pictures = [read_image(path) for path in images]
        pipeline, kernel_path = self._load()
        started = time.perf_counter()
        read = Understanding.of_images(pipeline, pictures, prompt, instruction or INSTRUCTION_IMAGE, chosen)
        self.say(f"prompt of {len(read.packed.ids)} tokens read")
        tokens: list[int] = []
        for token, _ in read.steps(max_new_tokens):
            tokens.append(token)
            self.say(f"token {len(tokens)}")
        text = decode_text(pipeline, tokens)
        return self._result(kernel_path, time.perf_counter() - started, text, tokens, None)

    def draw(
        self,
        prompt: str,
        out: Path,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        shift: float | None = None,
        cfg: float | None = None,
        seed: int = 42,
    ) -> Result:
        """Draw a picture from a prompt into a PNG file; what is None takes the checkpoint's default.

        Raises:
            UsageError: a size that is no multiple of 16 px, sampler settings that do not work, another file
            ending.
        """
        if out.suffix.lower() != ".png":
            raise UsageError(f"{out}: wanted a name ending in .png")
        asked = {
            "height": height,
            "width": width,
            "num_steps": steps,
            "timestep_shift": shift,
            "cfg_text_scale": cfg,
        }
        settings = Settings.combine(self.info.defaults, asked)
        sampler = sampling(settings)
        pipeline, kernel_path = self._load()
        started = time.perf_counter()
        drawn = imagine(
            pipeline,
            prompt,
            settings.height,
            settings.width,
            sampler,
            seed=seed,
            progress=lambda done, total: self.say(f"step {done} of {total}"),
        )
        seconds = time.perf_counter() - started
        with replacing(out) as partial:
            drawn.image.save(partial, "PNG")
        return self._result(kernel_path, seconds, None, None, out)
