"""How many tokens a sample takes, told from its words and the headers of its files, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.evaluation.samples import ANSWERING, Sample, Settings
from core.lance import prompts
from core.lance.buckets import vae_grid, vit_grid
from core.lance.generation import target_grid
from core.lance.packing import CAPTION, Packed, pack
from core.lance.prompts import Grid
from core.lance.roles import Role
from core.lance.tasks import drawing_prompt
from core.lance.vision import MERGE


@dataclass(frozen=True)
class Extent:
    """One sample's sequence, without its answer."""

    task: str
    context: dict[Role, int]
    """Tokens before the answer or the target block, by role."""
    caption: int
    """How many of them the unconditional context of guidance leaves out."""
    target: Grid | None = None
    """Latent grid of what is made; its first frame is given for i2v."""
    source: Grid | None = None
    """Latent grid of what the VAE encodes."""
    patches: int = 0
    """Patches that the vision tower takes at once."""
    answer: int = 0
    """Tokens that may be answered."""

    @property
    def block(self) -> int:
        """Latent tokens of the target."""
        return 0 if self.target is None else self.target[0] * self.target[1] * self.target[2]

    @property
    def given(self) -> int:
        """Latent tokens of the target that are given and not sampled."""
        return 0 if self.target is None or self.task != "i2v" else self.target[1] * self.target[2]

    @property
    def rows(self) -> int:
        """Tokens of the whole sequence, a target's markers and the longest answer included."""
        return sum(self.context.values()) + (self.block + 2 if self.target else 0) + self.answer


def extent(sample: Sample, settings: Settings, tokenizer: Any) -> Extent:
    """What ``sample`` takes under ``settings``.

    Raises:
        UsageError: sizes that Lance does not have, or special tokens in the words.
        DataError: a file that is gone or damaged.
    """
    shapes = [source.shape() for source in (*sample.pictures, *sample.clips)]
    resolution = settings.resolution
    seen = [vit_grid((width, height), frames, resolution) for width, height, frames in shapes]
    if sample.task in ANSWERING:
        packed = pack(prompts.question(seen, sample.question, sample.instruction), tokenizer)
        return Extent(sample.task, _count(packed), 0, patches=_patches(seen), answer=settings.max_new_tokens)
    if not shapes:
        frames = settings.num_frames if sample.task == "t2v" else 1
        target, source = target_grid(settings.height, settings.width, frames), None
    else:
        width, height, frames = shapes[0]
        source = vae_grid((width, height), frames, resolution)
        animated = (target_grid(16, 16, settings.num_frames)[0], *source[1:])
        target = animated if sample.task == "i2v" else source
    edited = sample.task in ("image_edit", "video_edit")
    packed = pack(drawing_prompt(sample.task, sample.prompt, target, seen), tokenizer)
    caption = sum(split.length for split in packed.splits if split.modality == CAPTION)
    return Extent(sample.task, _count(packed), caption, target, source, _patches(seen) if edited else 0)


def _patches(seen: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in seen) * MERGE**2


def _count(packed: Packed) -> dict[Role, int]:
    found: dict[Role, int] = {}
    for split in packed.splits:
        if split.mode == "noise":
            break
        for role in packed.roles(split).tolist():
            found[Role(role)] = found.get(Role(role), 0) + 1
    return found
