"""Sizes: buckets and centred crops of pictures, frames of clips, and the token grids that follow from them.

No torch and no pixels: what a request will take is known from its files' headers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import DataError, UsageError
from core.lance.config import MAX_LATENT_FRAMES, SPATIAL_STRIDE, TEMPORAL_STRIDE
from core.lance.prompts import Grid

RATIOS = ((21, 9), (16, 9), (4, 3), (1, 1), (3, 4), (9, 16))
"""Width to height of the size buckets, in upstream's order."""

BUCKET_STRIDE = 16
VIT_STRIDE = 28

VAE_SIDE = {"image_256res": 256, "video_192p": 256, "image_512res": 512, "image_768res": 768, "video_360p": 480,
            "video_480p": 640}  # fmt: skip
VIT_SIDE = {"image_256res": 224, "video_192p": 224, "image_512res": 448, "image_768res": 672, "video_360p": 476,
            "video_480p": 616}  # fmt: skip
"""Side of the square whose area a resolution aims at, for the VAE's and the vision tower's stream."""

NUM_FRAMES = 50
"""Frames of a generated clip unless said otherwise, as upstream's launch script has it; 49 come out."""

MAX_FRAMES = TEMPORAL_STRIDE * (MAX_LATENT_FRAMES - 1) + 1

MAX_ASPECT = 200
"""The longest side may be this many times the shortest; Qwen2-VL's own preprocessing has the same limit."""


def side(table: dict[str, int], resolution: str) -> int:
    """The side that ``table`` has for a resolution.

    Raises:
        UsageError: there is no such resolution.
    """
    if resolution not in table:
        raise UsageError(f"{resolution}: no such resolution; known are {', '.join(table)}")
    return table[resolution]


def check_shape(size: tuple[int, int]) -> None:
    """Refuse a picture (width, height) too narrow to be cropped to a bucket and still show something.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            f"an image of {size[0]} x {size[1]} px is too narrow: one side may be at most {MAX_ASPECT} times "
            "the other; crop it first"
        )


def check_frames(num_frames: int, task: str = "t2v") -> None:
    """Check how many frames of a target are asked for.

    Raises:
        UsageError: more than the position table has, or too few for a first frame to be followed by others.
    """
    least = TEMPORAL_STRIDE + 1 if task == "i2v" else 1
    if not least <= num_frames <= MAX_FRAMES:
        raise UsageError(
            f"{num_frames} frames asked for; wanted {least} to {MAX_FRAMES}, where Lance's position table ends"
        )


@dataclass(frozen=True)
class Bucket:
    """One target size of a resolution, in pixels."""

    height: int
    width: int


def buckets(side: int) -> list[Bucket]:
    """The sizes near ``side`` squared in area, one per ratio, each a multiple of 16 px.

    Of the size that fixes the width first and the one that fixes the height first, the closer to the ratio is taken;
    on a tie the closer in area.
    """
    found = []
    for across, down in RATIOS:
        ratio = across / down
        width_first = BUCKET_STRIDE * round(math.sqrt(side * side * ratio) / BUCKET_STRIDE)
        first = (BUCKET_STRIDE * round(width_first / ratio / BUCKET_STRIDE), width_first)
        height_first = BUCKET_STRIDE * round(math.sqrt(side * side / ratio) / BUCKET_STRIDE)
        second = (height_first, BUCKET_STRIDE * round(height_first * ratio / BUCKET_STRIDE))

        def distance(size: tuple[int, int], ratio: float = ratio) -> tuple[float, int]:
            return abs(size[1] / size[0] - ratio), abs(size[0] * size[1] - side * side)

        height, width = min((first, second), key=distance)
        found.append(Bucket(height, width))
    return found


def pick_bucket(width: int, height: int, side: int) -> Bucket:
    """The bucket whose ratio is nearest to the picture's (the first one on ties)."""
    return min(buckets(side), key=lambda bucket: abs(width / height - bucket.width / bucket.height))


def crop_box(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest centred crop of the given width-to-height ratio.

    Follows torchvision's RandomResizedCrop with scale 1 and a fixed ratio (offset 0 where it would draw one).
    """
    area = width * height
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
        return 0, 0, w, h
    if width / height < ratio:
        w, h = width, round(width / ratio)
    else:
        w, h = round(height * ratio), height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def vit_grid(size: tuple[int, int], frames: int, resolution: str) -> Grid:
    """Merged grid (t, h, w) of the vision tower's tokens for a picture or clip of (width, height).

    Raises:
        UsageError: unknown resolution.
    """
    bucket = pick_bucket(*size, side(VIT_SIDE, resolution))
    return (frames + 1) // 2, bucket.height // VIT_STRIDE, bucket.width // VIT_STRIDE


def vae_grid(size: tuple[int, int], frames: int, resolution: str) -> Grid:
    """Latent grid (t, h, w) of a picture or clip of (width, height); ``frames`` is 4 k + 1.

    Raises:
        UsageError: unknown resolution.
    """
    bucket = pick_bucket(*size, side(VAE_SIDE, resolution))
    t = (frames - 1) // TEMPORAL_STRIDE + 1
    return t, bucket.height // SPATIAL_STRIDE, bucket.width // SPATIAL_STRIDE
