"""The seven tasks, from a user's pictures and words to text, a picture or a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from core.errors import UsageError
from core.lance import prompts
from core.lance.buckets import NUM_FRAMES
from core.lance.config import LATENT_CHANNELS, SPATIAL_STRIDE
from core.lance.generation import (
    MAX_NEW_TOKENS,
    Answer,
    Drawing,
    Understanding,
    decode_text,
    target_grid,
)
from core.lance.loading import Pipeline
from core.lance.packing import pack
from core.lance.preprocess import to_pictures, to_rgb, vae_frames, vit_frames
from core.lance.prompts import UNDERSTANDING_TASKS, Block, Grid, Prompt
from core.lance.requests import Request, Visual
from core.lance.sampler import Sampling, Trace, sample
from core.lance.vision import MERGE, patchify

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, what is being done)."""

CHUNK = 16
"""Decoded frames that are turned to bytes at a time."""


@dataclass(frozen=True)
class Generated:
    """A generated picture or clip."""

    frames: torch.Tensor
    """uint8 [T, H, W, 3] on the CPU; T is 1 for a picture."""
    latents: torch.Tensor
    """Normalised latents, float32 [t, h, w, 48], on the CPU."""
    trace: Trace | None

    def images(self) -> list[Image.Image]:
        """The frames as pictures."""
        return [Image.fromarray(frame.numpy()) for frame in self.frames]


@dataclass(frozen=True)
class Scene:
    """A generation that was read and encoded, ready to be sampled."""

    drawing: Drawing
    start: torch.Tensor
    """x at time 1, float32 [K, 48]; given latents (a first frame) already in place."""
    grid: Grid


def _frames(visual: Visual) -> Sequence[Image.Image]:
    return [to_rgb(visual)] if isinstance(visual, Image.Image) else visual.frames


def vit_stream(visual: Visual, resolution: str) -> tuple[torch.Tensor, Grid]:
    """Patches [n, 1176] of a picture or clip and their grid (t, h, w)."""
    return patchify(torch.cat([vit_frames(frame, resolution) for frame in _frames(visual)], dim=1))


def vae_stream(visual: Visual, resolution: str) -> torch.Tensor:
    """Frames float32 [3, T, H, W] in -1..1 of a picture or clip."""
    return torch.cat([vae_frames(frame, resolution) for frame in _frames(visual)], dim=1)


def vision_features(
    pipeline: Pipeline, visuals: Sequence[Visual], resolution: str
) -> tuple[list[torch.Tensor], list[Grid]]:
    """The vision tower's features [t*h*w, hidden] of every visual, and their merged grids."""
    streams = [vit_stream(visual, resolution) for visual in visuals]
    merged: list[Grid] = [(t, h // MERGE, w // MERGE) for _, (t, h, w) in streams]
    together = pipeline.model.vit_model.features(
        torch.cat([patches for patches, _ in streams]), [grid for _, grid in streams]
    )
    return list(together.split([t * h * w for t, h, w in merged])), merged


def _resolution(pipeline: Pipeline, request: Request) -> str:
    return request.resolution or str(pipeline.defaults["resolution"])


@torch.inference_mode()
def understand(pipeline: Pipeline, request: Request) -> Understanding:
    """Read the pictures or clips and the question of x2t_image or x2t_video.

    Raises:
        UsageError: another task, or structure markers in the question.
        DataError: a picture too narrow to crop.
    """
    if request.task not in UNDERSTANDING_TASKS:
        raise UsageError(f"{request.task} answers no question; wanted {' or '.join(UNDERSTANDING_TASKS)}")
    instruction = request.instruction
    if instruction is None:
        video = request.task == "x2t_video"
        instruction = prompts.INSTRUCTION_VIDEO if video else prompts.INSTRUCTION_IMAGE
    features, grids = vision_features(pipeline, request.visuals, _resolution(pipeline, request))
    return Understanding(pipeline, features, grids, request.text, instruction)


def _target(pipeline: Pipeline, request: Request) -> Grid:
    """Latent grid of a target whose size the user chooses."""
    height = request.height or int(pipeline.defaults["height"])
    width = request.width or int(pipeline.defaults["width"])
    return target_grid(height, width, 1 if request.task == "t2i" else request.num_frames or NUM_FRAMES)


def drawing_prompt(task: str, text: str, grid: Grid, vit: Sequence[Grid] = ()) -> Prompt:
    """The prompt of a generation; the task decides the system prompt, not the number of frames."""
    if task in ("image_edit", "video_edit"):
        medium: Literal["image", "video"] = "image" if task == "image_edit" else "video"
        return prompts.edit(vit[0], grid, text, medium)
    system = prompts.SYSTEM_PICTURE if task == "t2i" else prompts.SYSTEM_VIDEO
    return Prompt(system, [], text, Block("target", grid))


@torch.inference_mode()
def prepare(
    pipeline: Pipeline,
    request: Request,
    *,
    noise: torch.Tensor | None = None,
    eps: torch.Tensor | None = None,
) -> Scene:
    """Read and encode everything a generation starts from.

    Args:
        noise: starting point float32 [K, 48] of all latent tokens, those of a source (which come first) included;
            None draws it from the request's seed.
        eps: posterior noise float32 [48, t, h, w] of the encoded source; None draws it after the noise. Upstream
            leaves it unseeded.

    Raises:
        UsageError: a task that generates nothing, a size that is no multiple of 16, noise of another shape, structure
            markers in the words.
        DataError: a picture too narrow to crop.
        CheckpointError: no VAE, or a damaged one.
    """
    if request.task in UNDERSTANDING_TASKS:
        raise UsageError(f"{request.task} generates nothing; answer its question instead")
    resolution = _resolution(pipeline, request)
    generator = torch.Generator().manual_seed(request.seed)
    if not request.visuals:
        grid = _target(pipeline, request)
        packed = pack(drawing_prompt(request.task, request.text, grid), pipeline.tokenizer)
        start = _noise(noise, grid, 1, generator)
        return Scene(Drawing(pipeline, packed), start, grid)
    pixels = vae_stream(request.visuals[0], resolution)
    _, count, height, width = pixels.shape
    if request.task == "i2v":
        grid = target_grid(height, width, request.num_frames or NUM_FRAMES)
        packed = pack(drawing_prompt(request.task, request.text, grid), pipeline.tokenizer)
        start = _noise(noise, grid, 1, generator)
        # Upstream encodes a whole clip and keeps latent frame 0, which a causal encoder makes of pixel frame 0 alone.
        first = pipeline.vae.encode(pixels, _posterior(eps, pixels, generator)).flatten(0, 2).cpu()
        fixed = torch.arange(len(start)) < len(first)
        return Scene(Drawing(pipeline, packed, fixed=fixed), torch.cat([first, start[len(first) :]]), grid)
    grid = target_grid(height, width, count)
    features, vit = vision_features(pipeline, request.visuals, resolution)
    packed = pack(drawing_prompt(request.task, request.text, grid, vit), pipeline.tokenizer)
    start = _noise(noise, grid, 2, generator)
    source = pipeline.vae.encode(pixels, _posterior(eps, pixels, generator)).flatten(0, 2)
    return Scene(Drawing(pipeline, packed, features, [source]), start, grid)


def _noise(noise: torch.Tensor | None, grid: Grid, blocks: int, generator: torch.Generator) -> torch.Tensor:
    """The target's rows of the noise of ``blocks`` latent blocks of one grid; the target is the last."""
    tokens = grid[0] * grid[1] * grid[2]
    shape = (blocks * tokens, LATENT_CHANNELS)
    if noise is None:
        noise = torch.randn(shape, generator=generator)
    if tuple(noise.shape) != shape:
        raise UsageError(f"noise of shape {list(noise.shape)}, wanted {list(shape)} for a target of {grid}")
    return noise[-tokens:].float()


def _posterior(eps: torch.Tensor | None, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Posterior noise [48, t, h, w] for pixels [3, T, H, W]."""
    if eps is not None:
        return eps
    frames, height, width = pixels.shape[1:]
    t, h, w = target_grid(height, width, frames)
    return torch.randn(LATENT_CHANNELS, t, h, w, generator=generator)


@torch.inference_mode()
def generate(
    pipeline: Pipeline,
    scene: Scene,
    sampling: Sampling | None = None,
    *,
    trace: bool = False,
    progress: Progress | None = None,
) -> Generated:
    """Sample a scene's target and decode it.

    Args:
        sampling: schedule and guidance; None takes the checkpoint's defaults.
        trace: also return what every step saw and predicted.
        progress: called after every step, and before the decoding.

    Raises:
        CheckpointError: no VAE, or a damaged one.
    """
    told = progress or (lambda done, total, message: None)
    chosen = sampling or pipeline.sampling()
    kept = Trace() if trace else None
    final = sample(
        scene.start.to(pipeline.device),
        pipeline.engine.velocities(scene.drawing) if pipeline.engine else scene.drawing.velocities,
        chosen,
        fixed=scene.drawing.fixed,
        trace=kept,
        progress=lambda done, total: told(done, total, "denoising"),
    )
    latents = final.view(*scene.grid, LATENT_CHANNELS)
    frames = 4 * (scene.grid[0] - 1) + 1
    height, width = scene.grid[1] * SPATIAL_STRIDE, scene.grid[2] * SPATIAL_STRIDE
    told(chosen.num_steps, chosen.num_steps, f"decoding {frames} frames of {height} x {width} px")
    decoded = pipeline.vae.decode(latents)
    pictures = torch.cat([to_pictures(part) for part in decoded.split(CHUNK, dim=1)])
    return Generated(pictures, latents.cpu(), kept)


@torch.inference_mode()
def answer_request(
    pipeline: Pipeline,
    request: Request,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> Answer:
    """Answer the question of x2t_image or x2t_video, greedily as upstream does.

    Raises:
        UsageError: another task, or structure markers in the question.
        DataError: a picture too narrow to crop.
    """
    read = understand(pipeline, request)
    tokens: list[int] = []
    for token, _ in read.steps(max_new_tokens):
        tokens.append(token)
        if progress is not None:
            progress(len(tokens), max_new_tokens, "answering")
    return Answer(tokens, decode_text(pipeline, tokens), len(read.packed.ids))


def run(
    pipeline: Pipeline,
    request: Request,
    sampling: Sampling | None = None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> Answer | Generated:
    """Do a request: an answer for questions, a picture or clip otherwise.

    Raises:
        WorkbenchError: as ``answer_request``, ``prepare`` and ``generate``.
    """
    if request.task in UNDERSTANDING_TASKS:
        return answer_request(pipeline, request, max_new_tokens, progress)
    if progress is not None:
        progress(0, (sampling or pipeline.sampling()).num_steps, "reading")
    return generate(pipeline, prepare(pipeline, request), sampling, progress=progress)
