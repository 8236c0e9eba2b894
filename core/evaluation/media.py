"""Pictures and clips on their way into the store, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from core.lance.video import Clip
from core.store import Store

PREVIEW_SIDE = 256
PREVIEW_FRAMES = 3

FRAMES = 9
"""Frames of a made clip that are kept and scored; all of a shorter one."""


def add_picture(store: Store, image: Image.Image) -> str:
    """Store a picture whole, as PNG; its key."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return store.add_media(buffer.getvalue(), "image/png", image.width, image.height)


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """One picture that stands for a clip: its frames beside each other, of a longer one nine in three rows."""
    chosen = [images[place] for place in evenly(len(images), FRAMES)]
    if len(chosen) == 1:
        return chosen[0]
    across = 3 if len(chosen) == FRAMES else len(chosen)
    width, height = chosen[0].size
    joined = Image.new("RGB", (across * width, -(-len(chosen) // across) * height))
    for place, image in enumerate(chosen):
        joined.paste(image, (place % across * width, place // across * height))
    return joined


def add_frames(store: Store, images: Sequence[Image.Image]) -> str:
    """Store a made picture, or the sheet of a made clip, pixel for pixel; its key."""
    return add_picture(store, sheet(images))


def add_preview(store: Store, visuals: Sequence[Image.Image | Clip]) -> str | None:
    """Store what was looked at, at most 256 px a side; several pictures side by side, of a clip some frames. None
    for nothing.
    """
    images: list[Image.Image] = []
    for visual in visuals:
        if isinstance(visual, Image.Image):
            images.append(visual)
        else:
            images += [visual.frames[place] for place in evenly(len(visual.frames), PREVIEW_FRAMES)]
    if not images:
        return None
    height = min(PREVIEW_SIDE, max(image.height for image in images))
    strip = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    if len(strip) > 1:
        joined = Image.new("RGB", (sum(image.width for image in strip), height))
        left = 0
        for image in strip:
            joined.paste(image, (left, 0))
            left += image.width
    else:
        # One small picture is kept as it is, pixel for pixel.
        joined = images[0].convert("RGB")
    joined.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return add_picture(store, joined)


def picture(store: Store, key: str) -> Image.Image:
    """A stored picture, RGB."""
    with Image.open(io.BytesIO(store.media(key))) as image:
        return image.convert("RGB")
