"""What a user asks of Lance: one task with its words, pictures and sizes, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from core.errors import UsageError
from core.lance.buckets import NUM_FRAMES, VIT_SIDE, check_frames, check_shape
from core.lance.config import TEMPORAL_STRIDE
from core.lance.prompts import TASKS, UNDERSTANDING_TASKS, Prompt
from core.lance.video import Clip

Visual = Image.Image | Clip


@dataclass(frozen=True)
class _Takes:
    """What a task takes besides words: pictures and clips (least, most), sizes and frames of its target."""

    images: tuple[int, int] = (0, 0)
    clips: tuple[int, int] = (0, 0)
    size: bool = False
    frames: bool = False


_MANY = 1_000_000
_TAKES = {
    "t2i": _Takes(size=True),
    "t2v": _Takes(size=True, frames=True),
    "i2v": _Takes(images=(1, 1), frames=True),
    "image_edit": _Takes(images=(1, 1)),
    "video_edit": _Takes(clips=(1, 1)),
    "x2t_image": _Takes(images=(1, _MANY)),
    "x2t_video": _Takes(clips=(1, _MANY)),
}


def check_inputs(
    task: str,
    images: int,
    clips: int,
    *,
    resolution: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    instruction: str | None = None,
) -> None:
    """Check that a task is given what it takes and nothing else; needs no file read and no model.

    Raises:
        UsageError: an unknown task or resolution, too many or too few pictures or clips, a size, frame count or
            instruction the task has no use for, or one that is out of range.
    """
    if task not in _TAKES:
        raise UsageError(f"{task}: no such task; known are {', '.join(TASKS)}")
    takes = _TAKES[task]
    for noun, given, (least, most) in (("image", images, takes.images), ("video", clips, takes.clips)):
        if not least <= given <= most:
            wanted = "no" if most == 0 else "one" if least == most else "at least one"
            raise UsageError(f"{task} takes {wanted} {noun}; {given or 'none'} given")
    if resolution is not None and resolution not in VIT_SIDE:
        raise UsageError(f"{resolution}: no such resolution; known are {', '.join(VIT_SIDE)}")
    if not takes.size and (height is not None or width is not None):
        where = "writes text" if task in UNDERSTANDING_TASKS else "takes its size from its source"
        raise UsageError(f"{task} {where}; leave height and width out")
    if instruction is not None and task not in UNDERSTANDING_TASKS:
        raise UsageError(f"{task} has a system prompt of its own; leave the instruction out")
    if num_frames is None:
        return
    if not takes.frames:
        raise UsageError(f"{task} has no frame count to choose; leave it out")
    check_frames(num_frames, task)


@dataclass(frozen=True)
class Request:
    """One run of one task. What is None takes the checkpoint's default.

    Raises:
        UsageError: on construction, as ``check_inputs``, or for structure markers in the words.
        DataError: a picture or clip too narrow to crop.
    """

    task: str
    text: str
    """Caption, editing instruction or question."""
    visuals: tuple[Visual, ...] = ()
    """Pictures (RGB) and clips, in the order Lance sees them."""
    instruction: str | None = None
    """The system prompt of a question; None: the one upstream's examples use."""
    resolution: str | None = None
    """Size buckets that pictures and clips are cropped to."""
    height: int | None = None
    width: int | None = None
    """Pixels of the target, multiples of 16."""
    num_frames: int | None = None
    """Frames of the target; one more than a multiple of four comes out, never more than asked for."""
    seed: int = 42

    def __post_init__(self) -> None:
        clips = sum(isinstance(visual, Clip) for visual in self.visuals)
        check_inputs(
            self.task,
            len(self.visuals) - clips,
            clips,
            resolution=self.resolution,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            instruction=self.instruction,
        )
        # Both would be found later, but a large model would have been loaded for nothing.
        Prompt(self.instruction or "", [], self.text).render()
        for visual in self.visuals:
            check_shape((visual if isinstance(visual, Image.Image) else visual.frames[0]).size)


def target_frames(task: str, num_frames: int | None, source_frames: int = 1) -> int:
    """Frames that a generation makes: one for pictures, as many as its source for an edit, else as asked for."""
    if task in ("t2v", "i2v"):
        return TEMPORAL_STRIDE * (((num_frames or NUM_FRAMES) - 1) // TEMPORAL_STRIDE) + 1
    return source_frames
