"""From pictures to pixels: reading, cropping and resizing to a bucket, normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError

from core.errors import DataError
from core.lance.buckets import (
    BUCKET_STRIDE,
    VAE_SIDE,
    VIT_SIDE,
    VIT_STRIDE,
    Bucket,
    check_shape,
    crop_box,
    pick_bucket,
    side,
)

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
        raise DataError(f"{path}: no such image; give the path of one that is there") from error
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


def _fit(image: Image.Image, bucket: Bucket) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]:
    check_shape(image.size)
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
    bucket = pick_bucket(image.width, image.height, side(VIT_SIDE, resolution))
    return _normalise(_centre_crop(_fit(image, bucket), VIT_STRIDE), CLIP_MEAN, CLIP_STD)[:, None]


def vae_frames(image: Image.Image, resolution: str) -> torch.Tensor:
    """The VAE's stream of one picture: float32 [3, 1, H, W] in -1..1, H and W multiples of 16.

    Raises:
        UsageError: unknown resolution.
        DataError: a picture too narrow to crop.
    """
    bucket = pick_bucket(image.width, image.height, side(VAE_SIDE, resolution))
    return _normalise(_centre_crop(_fit(image, bucket), BUCKET_STRIDE), (0.5,) * 3, (0.5,) * 3)[:, None]


def to_pictures(frames: torch.Tensor) -> torch.Tensor:
    """Decoded frames [3, T, H, W] in -1..1 as uint8 [T, H, W, 3], rounded to the nearest level."""
    levels = (frames.float().clamp(-1, 1) * 0.5 + 0.5) * 255
    return levels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu()
