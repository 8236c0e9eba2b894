"""From pictures to pixels: reading, size buckets, centre crop, resize, normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError

from core.errors import DataError, UsageError

RATIOS = ((21, 9), (16, 9), (4, 3), (1, 1), (3, 4), (9, 16))
"""Width to height of the size buckets, in upstream's order."""

BUCKET_STRIDE = 16
VIT_STRIDE = 28

VAE_SIDE = {"image_256res": 256, "video_192p": 256, "image_512res": 512, "image_768res": 768, "video_360p": 480,
            "video_480p": 640}  # fmt: skip
VIT_SIDE = {"image_256res": 224, "video_192p": 224, "image_512res": 448, "image_768res": 672, "video_360p": 476,
            "video_480p": 616}  # fmt: skip
"""Side of the square whose area a resolution aims at, for the VAE's and the vision tower's stream."""

MAX_ASPECT = 200
"""The longest side may be this many times the shortest; Qwen2-VL's own preprocessing has the same limit."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB; transparency is laid over white.

    Raises:
        DataError: the file is missing or no picture Pillow can read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read; wanted PNG, JPEG, WebP or GIF") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as upstream makes it: palettes through RGBA, RGBA pasted on white by its alpha, the rest converted."""
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


def check_shape(image: Image.Image) -> None:
    """Refuse a picture too narrow to be cropped to a bucket and still show something.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise DataError(
            f"an image of {image.width} x {image.height} px is too narrow: one side may be at most {MAX_ASPECT} times "
            "the other; crop it first"
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


def _side(table: dict[str, int], resolution: str) -> int:
    if resolution not in table:
        raise UsageError(f"{resolution}: no such resolution; known are {', '.join(table)}")
    return table[resolution]


def _fit(image: Image.Image, bucket: Bucket) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]:
    check_shape(image)
    box = crop_box(image.width, image.height, bucket.width / bucket.height)
    resized = image.crop(box).resize((bucket.width, bucket.height), Image.Resampling.BICUBIC)
    return numpy.asarray(resized, dtype=numpy.float32) / numpy.float32(255.0)


def _centre_crop(
    pixels: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]], stride: int
) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]:
    height, width = pixels.shape[0] // stride * stride, pixels.shape[1] // stride * stride
    top, left = round((pixels.shape[0] - height) / 2.0), round((pixels.shape[1] - width) / 2.0)
    return pixels[top : top + height, left : left + width]


def _normalise(
    pixels: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> torch.Tensor:
    tensor = torch.from_numpy(numpy.ascontiguousarray(pixels)).permute(2, 0, 1)
    return (tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def vit_frames(image: Image.Image, resolution: str) -> torch.Tensor:
    """The vision tower's stream of one picture: float32 [3, 1, H, W], H and W multiples of 28.

    Raises:
        UsageError: unknown resolution.
        DataError: a picture too narrow to crop.
    """
    bucket = pick_bucket(image.width, image.height, _side(VIT_SIDE, resolution))
    return _normalise(_centre_crop(_fit(image, bucket), VIT_STRIDE), CLIP_MEAN, CLIP_STD)[:, None]


def vae_frames(image: Image.Image, resolution: str) -> torch.Tensor:
    """The VAE's stream of one picture: float32 [3, 1, H, W] in -1..1, H and W multiples of 16.

    Raises:
        UsageError: unknown resolution.
        DataError: a picture too narrow to crop.
    """
    bucket = pick_bucket(image.width, image.height, _side(VAE_SIDE, resolution))
    return _normalise(_centre_crop(_fit(image, bucket), BUCKET_STRIDE), (0.5,) * 3, (0.5,) * 3)[:, None]


def to_pictures(frames: torch.Tensor) -> torch.Tensor:
    """Decoded frames [3, T, H, W] in -1..1 as uint8 [T, H, W, 3], rounded to the nearest level."""
    levels = (frames.float().clamp(-1, 1) * 0.5 + 0.5) * 255
    return levels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu()
