"""A plain pixel check of a drawn picture: what colour and which shape stands out from the background.

No model is involved: the background is the border's median colour, the object everything that differs from it enough,
its colour the nearest named one to the object's median, its shape the template it overlaps most.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw

from core.demo.canvas import COLOURS
from core.demo.shapes import SHAPES, draw_shape

_GRID = 40
_DIFFERENT = 60.0
"""Euclidean RGB distance from which a pixel does not belong to the background."""

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

UNKNOWN = ("nothing", "nothing")
"""The answer for a picture in which nothing stands out."""


def _cropped(mask: Mask) -> Mask:
    """The mask's bounding box, padded to a square and resampled to ``_GRID`` x ``_GRID``."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(box.shape)
    square = np.zeros((side, side), dtype=bool)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box
    image = Image.fromarray(square.astype(np.uint8) * 255).resize((_GRID, _GRID), Image.Resampling.BILINEAR)
    return np.asarray(image) > 127


@functools.cache
def _template(shape: str) -> Mask:
    image = Image.new("RGB", (200, 200), (255, 255, 255))
    draw_shape(ImageDraw.Draw(image), shape, 100, 100, 80, (0, 0, 0), (255, 255, 255))
    return _cropped(np.asarray(image)[:, :, 0] < 128)


def recognise(image: Image.Image) -> tuple[str, str]:
    """(shape, colour) of the main object of an RGB picture, or ``UNKNOWN``."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mask: Mask = np.linalg.norm(pixels - np.median(border, axis=0), axis=2) > _DIFFERENT
    # Specks of a generated picture: a pixel belongs to the object if most of its surroundings do.
    padded = np.pad(mask, 1).astype(np.int32)
    height, width = mask.shape
    around = np.sum([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    mask &= around >= 4
    if mask.sum() < 0.005 * mask.size:
        return UNKNOWN
    inner = mask & (around == 9)
    middle = np.median(pixels[inner if inner.any() else mask], axis=0)
    colour = min(COLOURS, key=lambda name: float(np.linalg.norm(middle - np.array(COLOURS[name]))))
    found = _cropped(mask)

    def overlap(shape: str) -> float:
        template = _template(shape)
        return float((found & template).sum() / (found | template).sum())

    return max(SHAPES, key=overlap), colour
