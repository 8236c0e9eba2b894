"""Pictures on their way into the store, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from core.store import Store

PREVIEW_SIDE = 256


def add_picture(store: Store, image: Image.Image) -> str:
    """Store a picture whole, as PNG; its key."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return store.add_media(buffer.getvalue(), "image/png", image.width, image.height)


def add_preview(store: Store, images: Sequence[Image.Image]) -> str | None:
    """Store what a question was asked about, at most 256 px a side; several pictures side by side. None for none."""
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
