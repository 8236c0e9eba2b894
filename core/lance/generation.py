"""What a loaded Lance does for a caller: answer about pictures, score an answer, draw a picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from core.errors import UsageError
from core.lance import prompts
from core.lance.config import SPATIAL_STRIDE, TEMPORAL_STRIDE
from core.lance.context import Context
from core.lance.loading import Pipeline
from core.lance.packing import Packed, pack
from core.lance.preprocess import to_pictures, to_rgb, vit_frames
from core.lance.prompts import INSTRUCTION_IMAGE, Grid
from core.lance.roles import Role
from core.lance.sampler import Sampling, Trace, sample
from core.lance.vision import MERGE, patchify

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    tokens: list[int]
    """Generated ids, the closing ``<|im_end|>`` included where it was reached."""
    text: str
    prompt_tokens: int


@dataclass(frozen=True)
class Picture:
    """A generated picture."""

    image: Image.Image
    latents: torch.Tensor
    """Normalised latents, float32 [1, h, w, 48]."""
    trace: Trace | None


class Understanding:
    """One picture question, read into a cache and ready to be answered or scored."""

    def __init__(
        self,
        pipeline: Pipeline,
        features: Sequence[torch.Tensor],
        grids: Sequence[Grid],
        question: str,
        instruction: str = INSTRUCTION_IMAGE,
    ) -> None:
        """Read a question about visual features [t*h*w, hidden] of merged grids (t, h, w)."""
        self.pipeline = pipeline
        self.features = features
        self.packed = pack(prompts.question(grids, question, instruction), pipeline.tokenizer)
        room = len(self.packed.ids) + MAX_NEW_TOKENS
        cache = pipeline.engine.new_cache(room) if pipeline.engine else None
        self.context = Context(pipeline.model, self.packed, cache)
        # The last prompt token is fed together with the answer: its hidden state predicts the first answer token.
        self.last = len(self.packed.ids) - 1
        self.hidden = self.context.fill(features, stop=self.last)
        self.position = int(self.packed.positions[0, self.last])

    @classmethod
    def of_images(
        cls,
        pipeline: Pipeline,
        images: Sequence[Image.Image],
        question: str,
        instruction: str = INSTRUCTION_IMAGE,
        resolution: str | None = None,
    ) -> Understanding:
        """Read a question about pictures at a resolution's size bucket (None: the checkpoint's default)."""
        chosen = resolution or str(pipeline.defaults["resolution"])
        flattened = [patchify(vit_frames(to_rgb(image), chosen)) for image in images]
        grids = [grid for _, grid in flattened]
        merged: list[Grid] = [(t, h // MERGE, w // MERGE) for t, h, w in grids]
        if not flattened:
            return cls(pipeline, [], [], question, instruction)
        together = pipeline.model.vit_model.features(torch.cat([patches for patches, _ in flattened]), grids)
        return cls(pipeline, together.split([t * h * w for t, h, w in merged]), merged, question, instruction)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits float32 [len(tokens), vocab] that predict each of ``tokens`` given those before it.

        Ids the tokenizer does not have are minus infinity. The context is left as it was.
        """
        ids = torch.cat([self.packed.ids[self.last :], torch.tensor(list(tokens[:-1]), dtype=torch.int64)])
        kept = self.context.cache.length
        hidden = self.context.extend(ids, self.position, Role.ANSWER)
        self.context.cache.length = kept
        return self._mask(self.pipeline.model.logits(hidden))

    def _mask(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, len(self.pipeline.tokenizer) :] = float("-inf")
        return logits

    def steps(self, limit: int = MAX_NEW_TOKENS) -> Iterator[tuple[int, torch.Tensor]]:
        """Greedy decoding, one (token, masked logits float32 [vocab]) at a time, up to and with ``<|im_end|>``."""
        stop = self.pipeline.tokenizer.convert_tokens_to_ids(prompts.IM_END)
        for token, logits in itertools.islice(self._greedy(), limit):
            yield token, logits
            if token == stop:
                return

    def _greedy(self) -> Iterator[tuple[int, torch.Tensor]]:
        engine, token = self.pipeline.engine, int(self.packed.ids[self.last])
        if engine is not None:
            yield from engine.decode(self.context.cache, token, self.position, len(self.pipeline.tokenizer))
            return
        for index in itertools.count():
            role = Role.ANSWER if index else Role.TEXT
            hidden = self.context.extend(torch.tensor([token]), self.position + index, role)
            logits = self._mask(self.pipeline.model.logits(hidden))[0]
            token = int(logits.argmax())
            yield token, logits


def decode_text(pipeline: Pipeline, tokens: Sequence[int]) -> str:
    """The words of generated ids, without the closing marker and outer blanks."""
    return str(pipeline.tokenizer.decode(list(tokens))).replace(prompts.IM_END, "").strip()


@torch.inference_mode()
def answer(
    pipeline: Pipeline,
    images: Sequence[Image.Image],
    question: str,
    instruction: str = INSTRUCTION_IMAGE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    resolution: str | None = None,
) -> Answer:
    """Answer a question about pictures, greedily as upstream does.

    Raises:
        UsageError: unknown resolution, or structure markers in the question.
    """
    understanding = Understanding.of_images(pipeline, images, question, instruction, resolution)
    tokens = [token for token, _ in understanding.steps(max_new_tokens)]
    return Answer(tokens, decode_text(pipeline, tokens), len(understanding.packed.ids))


@torch.inference_mode()
def teacher_forced(
    pipeline: Pipeline,
    images: Sequence[Image.Image],
    question: str,
    instruction: str,
    tokens: Sequence[int],
    resolution: str | None = None,
) -> torch.Tensor:
    """Logits float32 [len(tokens), vocab] predicting each of ``tokens`` after the question; unknown ids are -inf."""
    return Understanding.of_images(pipeline, images, question, instruction, resolution).logits(tokens)


class Drawing:
    """One caption or edit, read into a conditional and an unconditional cache, ready to be drawn."""

    def __init__(
        self,
        pipeline: Pipeline,
        packed: Packed,
        features: Sequence[torch.Tensor] = (),
        sources: Sequence[torch.Tensor] = (),
        fixed: torch.Tensor | None = None,
    ) -> None:
        """Fill both caches.

        Args:
            features: ViT features [tokens, hidden] per ViT block of an edit.
            sources: clean latents [tokens, 48] per source block of an edit.
            fixed: bool [K], target tokens that are given (a first frame): they are shown at time 0.
        """
        target = packed.target
        self.packed = packed
        self.features, self.sources = features, sources
        self.fixed = fixed
        self.conditional = Context(pipeline.model, packed)
        self.conditional.fill(features, sources)
        self.unconditional = Context(pipeline.model, packed)
        self.unconditional.fill(features, sources, with_caption=False)
        first = self.unconditional.cache.length
        self.positions = packed.positions[:, target.start : target.stop]
        # The context keeps the full prompt's positions, the target takes those of the prompt without its caption:
        # upstream's cached path mixes the two, and the released model is used that way (SPEC section 10).
        self.uncond_positions = packed.uncond_positions[:, first : first + target.length]

    def times(self, time: float) -> torch.Tensor:
        """Flow time of every target token, float32 [K], when the sampler is at ``time``: 0 where it is given."""
        block = self.packed.target.block
        assert block is not None
        times = torch.full((block.tokens,), time)
        if self.fixed is not None:
            times[self.fixed] = 0.0
        return times

    def velocity(self, latents: torch.Tensor, time: float, conditional: bool = True) -> torch.Tensor:
        """Velocity float32 [K, 48] at x_t [K, 48] and flow time t."""
        times = self.times(time)
        if conditional:
            return self.conditional.velocity(latents, times, self.positions)
        return self.unconditional.velocity(latents, times, self.uncond_positions)

    def velocities(
        self, latents: torch.Tensor, time: float, guided: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The conditional and, if ``guided``, the unconditional velocity, float32 [K, 48] each."""
        cond = self.velocity(latents, time)
        return cond, self.velocity(latents, time, conditional=False) if guided else None


def target_grid(height: int, width: int, num_frames: int = 1) -> Grid:
    """Latent grid (t, h, w) of a target of the given pixels and frames.

    Raises:
        UsageError: a side that is no positive multiple of 16 px; the message names the nearest size.
    """
    for name, side in (("height", height), ("width", width)):
        if side < SPATIAL_STRIDE or side % SPATIAL_STRIDE:
            nearest = max(SPATIAL_STRIDE, round(side / SPATIAL_STRIDE) * SPATIAL_STRIDE)
            raise UsageError(f"{name} {side} px is no multiple of {SPATIAL_STRIDE}; the nearest is {nearest}")
    return (num_frames - 1) // TEMPORAL_STRIDE + 1, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def drawing(pipeline: Pipeline, caption: str, height: int, width: int) -> Drawing:
    """Read a caption for a picture of the given size in pixels.

    Raises:
        UsageError: a size that is no multiple of 16, or structure markers in the caption.
    """
    return Drawing(
        pipeline, pack(prompts.generation(caption, target_grid(height, width)), pipeline.tokenizer)
    )


def start_noise(tokens: int, seed: int) -> torch.Tensor:
    """Gaussian starting point float32 [tokens, 48], drawn on the CPU so that every device starts alike."""
    return torch.randn(tokens, 48, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def imagine(
    pipeline: Pipeline,
    prompt: str,
    height: int | None = None,
    width: int | None = None,
    sampling: Sampling | None = None,
    *,
    noise: torch.Tensor | None = None,
    seed: int = 42,
    trace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Picture:
    """Draw a picture from a caption.

    Args:
        height, width: pixels, multiples of 16; None takes the checkpoint's defaults.
        sampling: schedule and guidance; None takes the checkpoint's defaults.
        noise: starting point [K, 48]; None draws it from ``seed``.
        trace: also return what every step saw and predicted.
        progress: called with (steps done, steps in all).

    Raises:
        UsageError: a size that is no multiple of 16, noise of another shape.
    """
    height, width = height or int(pipeline.defaults["height"]), width or int(pipeline.defaults["width"])
    reader = drawing(pipeline, prompt, height, width)
    block = reader.packed.target.block
    assert block is not None
    if noise is None:
        noise = start_noise(block.tokens, seed)
    if tuple(noise.shape) != (block.tokens, 48):
        raise UsageError(
            f"noise of shape {list(noise.shape)}, wanted [{block.tokens}, 48] for {height} x {width} px"
        )
    kept = Trace() if trace else None
    final = sample(
        noise.to(pipeline.model.device),
        pipeline.engine.velocities(reader) if pipeline.engine else reader.velocities,
        sampling or pipeline.sampling(),
        trace=kept,
        progress=progress,
    )
    latents = final.view(*block.grid, 48).cpu()
    frames = to_pictures(pipeline.vae.decode(latents))
    return Picture(Image.fromarray(frames[0].numpy()), latents, kept)
