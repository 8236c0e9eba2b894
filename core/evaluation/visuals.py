"""Where a sample's pictures and clips come from: files, or the demo's drawing code and a seed.

Pixels are read or drawn when ``load`` or ``digest`` is called, and not kept.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.files import sha256_file

if TYPE_CHECKING:
    from PIL import Image

    from core.lance.video import Clip

Shape = tuple[int, int, int]
"""Width and height in pixels, and how many frames Lance looks at."""

CAPTIONED = "caption"
"""The kind of a drawn picture that shows what ``core.demo.captions`` describes."""


@dataclass(frozen=True)
class DrawnPicture:
    """A picture drawn anew: of a kind of question (``core.demo.drawing``), or of a caption."""

    kind: str
    seed: int

    def load(self) -> Image.Image:
        """The picture, RGB."""
        if self.kind == CAPTIONED:
            from core.demo.captions import caption

            return caption(self.seed).image
        from core.demo.drawing import draw

        return draw(self.kind, self.seed).image

    def shape(self) -> Shape:
        """Its size, without drawing it."""
        from core.demo.canvas import SIDE
        from core.demo.captions import CAPTION_SIDE

        side = CAPTION_SIDE if self.kind == CAPTIONED else SIDE
        return side, side, 1

    def digest(self) -> str:
        """SHA-256 over size and pixels."""
        return _drawn_digest(self)


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file; checked for being one when the suite was read."""

    path: Path

    def load(self) -> Image.Image:
        """The picture, RGB, transparency laid over white.

        Raises:
            DataError: the file is gone or damaged.
        """
        from core.lance.preprocess import read_image

        return read_image(self.path)

    def shape(self) -> Shape:
        """Its size, from the file's header."""
        from PIL import Image

        with Image.open(self.path) as image:
            return image.width, image.height, 1

    def digest(self) -> str:
        """SHA-256 over the file's bytes."""
        return sha256_file(self.path)


@dataclass(frozen=True)
class DrawnClip:
    """The clip that ``core.demo.moving`` draws of a seed."""

    seed: int

    def load(self) -> Clip:
        """Its frames, RGB."""
        from core.demo.moving import moving
        from core.lance.video import CLIP_FPS, Clip

        frames = moving(self.seed).frames
        return Clip(frames, list(range(len(frames))), len(frames), CLIP_FPS)

    def shape(self) -> Shape:
        """Its size, without drawing it."""
        from core.demo.captions import CAPTION_SIDE
        from core.demo.moving import FRAMES

        return CAPTION_SIDE, CAPTION_SIDE, FRAMES

    def digest(self) -> str:
        """SHA-256 over the frames' sizes and pixels."""
        return _drawn_digest(self)


@dataclass(frozen=True)
class ClipFile:
    """A clip in a file; checked for having frames when the suite was read."""

    path: Path

    def load(self) -> Clip:
        """The frames that Lance looks at.

        Raises:
            DataError: the file is gone, damaged, or has no frames.
            WorkbenchError: PyAV is not installed.
        """
        from core.lance.video import read_clip

        return read_clip(self.path)

    def shape(self) -> Shape:
        """Its size, from the file's headers.

        Raises:
            DataError, WorkbenchError: as ``load``.
        """
        from core.lance.video import clip_shape

        return clip_shape(self.path)

    def digest(self) -> str:
        """SHA-256 over the file's bytes."""
        return sha256_file(self.path)


@functools.cache
def _drawn_digest(source: DrawnPicture | DrawnClip) -> str:
    if isinstance(source, DrawnPicture):
        return _pixels(source.load())
    return hashlib.sha256("\n".join(map(_pixels, source.load().frames)).encode()).hexdigest()


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
