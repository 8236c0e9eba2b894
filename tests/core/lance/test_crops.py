"""Buckets and crops of pictures of any shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import DataError
from core.lance.buckets import MAX_ASPECT, VAE_SIDE, crop_box, pick_bucket, vae_grid, vit_grid
from core.lance.preprocess import vae_frames, vit_frames

SIDES = st.integers(1, 5000)


@settings(deadline=None)
@given(width=SIDES, height=SIDES, side=st.sampled_from(sorted(set(VAE_SIDE.values()))))
def test_a_crop_lies_inside_and_has_the_ratio_of_its_bucket(width: int, height: int, side: int) -> None:
    bucket = pick_bucket(width, height, side)
    assert bucket.height % 16 == 0 and bucket.width % 16 == 0
    left, top, right, bottom = crop_box(width, height, bucket.width / bucket.height)
    assert 0 <= left <= right <= width and 0 <= top <= bottom <= height
    if max(width, height) > MAX_ASPECT * min(width, height):
        return
    assert right > left and bottom > top
    # One side is kept whole, the other is off by less than a pixel.
    assert right - left == width or bottom - top == height
    ratio = bucket.width / bucket.height
    assert abs((right - left) - (bottom - top) * ratio) <= max(1.0, ratio)


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_both_streams_have_whole_tokens(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    vit, vae = vit_frames(image, "image_256res"), vae_frames(image, "image_256res")
    assert vit.shape[0] == vae.shape[0] == 3
    assert all(side and side % 28 == 0 for side in vit.shape[2:])
    assert all(side and side % 16 == 0 for side in vae.shape[2:])
    # Grids told from the size alone are those of the pixels.
    assert vit_grid(size, 1, "image_256res") == (1, vit.shape[2] // 28, vit.shape[3] // 28)
    assert vae_grid(size, 5, "image_256res") == (2, vae.shape[2] // 16, vae.shape[3] // 16)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (5, 1001)])
def test_a_sliver_is_refused(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    for stream in (vit_frames, vae_frames):
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} px is too narrow: .* crop it first"):
            stream(image, "image_768res")
