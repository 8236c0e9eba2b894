"""What Lance is told: the chat template and the system prompt of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError

TASKS = ("t2i", "t2v", "i2v", "image_edit", "video_edit", "x2t_image", "x2t_video")
UNDERSTANDING_TASKS = ("x2t_image", "x2t_video")
VIDEO_TASKS = ("t2v", "i2v", "video_edit", "x2t_video")

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
"""The pad is the *video* pad for every visual token, pictures included."""

SPECIAL = (
    IM_START, IM_END, VISION_START, VISION_END, VIDEO_PAD, "<|endoftext|>", "<|image_pad|>", "<|vision_pad|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
)  # fmt: skip
"""The tokenizer's special tokens: in a user's words each would become one token with a meaning of its own."""

SYSTEM_PICTURE = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
    "objects and background:"
)
SYSTEM_VIDEO = (
    "Describe the video by detailing the color, quantity, visible text, shape, size, texture, spatial relationships "
    "and motion/camera movements of the objects and background:"
)
SYSTEM_EDIT = (
    "Describe the key features of the input {medium} (color, shape, size, texture, objects, background), "
    "then explain how the user’s text instruction should alter or modify the {medium}. "
    "Generate a new {medium} that meets the user’s requirements while maintaining consistency "
    "with the original input where appropriate."
)
INSTRUCTION_IMAGE = "Look at the image carefully and answer the question."
INSTRUCTION_VIDEO = "Watch the video carefully and answer the question."

Grid = tuple[int, int, int]


def check_words(words: str) -> None:
    """Refuse words that hold a special token.

    Raises:
        UsageError: they do; the first one is named.
    """
    for marker in SPECIAL:
        if marker in words:
            raise UsageError(f"the prompt holds {marker}, which marks structure for the model; remove it")


@dataclass(frozen=True)
class Block:
    """A visual block: what it holds and its merged grid (t, h, w); it becomes t * h * w pads between two markers."""

    kind: Literal["vit", "source", "target"]
    grid: Grid

    @property
    def tokens(self) -> int:
        """Pads of the block, without its two markers."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class Prompt:
    """One sample before tokenisation.

    ``text`` follows the visual blocks of the user's turn. For generation it is the caption that text guidance drops.
    ``target`` is the block to generate; without it the prompt ends where the answer begins.
    """

    system: str
    visuals: Sequence[Block]
    text: str
    target: Block | None = None

    def render(self) -> tuple[str, tuple[int, int]]:
        """The text with one pad per block, and the character span of ``text`` in it.

        Raises:
            UsageError: the user's words hold one of the markers that structure a prompt.
        """
        check_words(self.system)
        check_words(self.text)
        block = f"{VISION_START}{VIDEO_PAD}{VISION_END}"
        head = f"{IM_START}system\n{self.system}{IM_END}\n{IM_START}user\n" + block * len(self.visuals)
        tail = f"{IM_END}\n{IM_START}assistant\n" + (f"{block}{IM_END}" if self.target else "")
        return head + self.text + tail, (len(head), len(head) + len(self.text))


def question(visuals: Sequence[Grid], text: str, instruction: str = INSTRUCTION_IMAGE) -> Prompt:
    """Understanding: pictures or a video (merged ViT grids), then the question."""
    return Prompt(instruction, [Block("vit", grid) for grid in visuals], text)


def generation(caption: str, target: Grid) -> Prompt:
    """Text to image, text to video and image to video; the target is a video if it has more than one latent frame."""
    return Prompt(SYSTEM_VIDEO if target[0] > 1 else SYSTEM_PICTURE, [], caption, Block("target", target))


def edit(vit: Grid, source: Grid, instruction: str, medium: Literal["image", "video"]) -> Prompt:
    """Editing: the source as the vision tower and as the VAE see it, then the instruction; the target has its size."""
    blocks = [Block("vit", vit), Block("source", source)]
    return Prompt(SYSTEM_EDIT.format(medium=medium), blocks, instruction, Block("target", source))
