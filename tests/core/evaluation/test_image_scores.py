"""Picture similarity by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from core.evaluation import image_scores


def test_known_error() -> None:
    left = np.full((4, 4, 3), 100, dtype=np.uint8)
    right = left + 10
    assert image_scores.psnr(left, right) == pytest.approx(20 * math.log10(255 / 10))
    assert image_scores.mae(left, right) == 10.0
    assert image_scores.mae(right, left) == 10.0, "unsigned subtraction must not wrap"
    assert image_scores.cosine(left, right) == pytest.approx(1.0)


def test_orthogonal_pictures() -> None:
    left, right = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    left[0], right[1] = 200, 200
    assert image_scores.cosine(left, right) == 0.0
    assert image_scores.cosine(left, np.zeros_like(left)) == 0.0
    assert image_scores.cosine(np.zeros_like(left), np.zeros_like(left)) == 1.0


def test_identical_pictures_have_a_finite_score() -> None:
    picture = Image.new("RGB", (16, 16), "teal")
    assert image_scores.psnr(np.asarray(picture), np.asarray(picture)) == math.inf
    scores = image_scores.score(picture, picture.copy())
    assert scores.psnr == image_scores.PSNR_CEILING
    assert scores.mae == 0.0
    assert scores.cosine == pytest.approx(1.0)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(16, 16\) and \(32, 16\)"):
        image_scores.score(Image.new("RGB", (16, 16)), Image.new("RGB", (32, 16)))
