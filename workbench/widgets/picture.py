"""A picture as half blocks: each cell shows two pixels, one above the other."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def opened(data: bytes, name: str) -> Image.Image:
    """The image in ``data``, as RGB over white where it is transparent.

    Raises:
        DataError: the bytes are no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name}: cannot be shown, the stored bytes are no image ({error})") from error
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def fitted(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """The cells (columns, rows) of a picture of ``width`` x ``height`` pixels in at most ``columns`` x ``rows``."""
    scale = min(columns / width, rows * 2 / height)
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def half_blocks(image: Image.Image, columns: int, rows: int) -> list[Strip]:
    """``image`` in ``columns`` x ``rows`` cells: ``▀`` has the upper pixel's colour, its background the lower's."""
    from PIL.Image import Resampling

    pixels = image.resize((columns, rows * 2), Resampling.LANCZOS).tobytes()
    stride = columns * 3
    lines = []
    for row in range(rows):
        above, below = row * 2 * stride, (row * 2 + 1) * stride
        segments: list[Segment] = []
        previous: Style | None = None
        run = 0
        for x in range(0, stride, 3):
            style = _style(pixels[above + x : above + x + 3], pixels[below + x : below + x + 3])
            if style is not previous and previous is not None:
                segments.append(Segment("▀" * run, previous))
                run = 0
            previous, run = style, run + 1
        segments.append(Segment("▀" * run, previous))
        lines.append(Strip(segments, columns))
    return lines


@lru_cache(maxsize=8192)
def _style(upper: bytes, lower: bytes) -> Style:
    # The lowest two bits of a channel cannot be seen; dropping them lets neighbours share one escape sequence.
    top = Color.from_rgb(*(value & 0xFC for value in upper))
    bottom = Color.from_rgb(*(value & 0xFC for value in lower))
    return Style(color=top, bgcolor=bottom)


def beside(left: Image.Image, right: Image.Image, gap: int = 8) -> bytes:
    """Both images beside each other on white, as PNG."""
    from PIL import Image

    sheet = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + gap, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
