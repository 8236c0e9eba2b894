"""How close two pictures made from the same noise are, pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

PSNR_CEILING = 100.0
"""Decibels that identical pictures count as, so that means stay finite; nothing visible lies above it."""


@dataclass(frozen=True)
class ImageScores:
    """``psnr`` in dB (at most PSNR_CEILING), ``mae`` in steps of 0..255, ``cosine`` of raw pixel values."""

    psnr: float
    mae: float
    cosine: float


def psnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """10 log10(255^2 / mean squared error) in dB for values 0..255; infinite for identical arrays."""
    error = float(np.mean((reference.astype(np.float64) - candidate.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def mae(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean absolute error in steps of 0..255."""
    return float(np.mean(np.abs(reference.astype(np.float64) - candidate.astype(np.float64))))


def cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Cosine of the flattened pixel values (not centred); two all-black pictures count as 1."""
    left, right = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0:
        return float(not left.any() and not right.any())
    return min(1.0, float(left @ right) / norms)


def score(reference: Image.Image, candidate: Image.Image) -> ImageScores:
    """Scores of two RGB pictures of equal size.

    Raises:
        ValueError: the sizes differ; pictures of one suite and one setting never do.
    """
    if reference.size != candidate.size:
        raise ValueError(f"pictures of {reference.size} and {candidate.size} pixels cannot be compared")
    left, right = np.asarray(reference.convert("RGB")), np.asarray(candidate.convert("RGB"))
    return ImageScores(
        psnr=min(PSNR_CEILING, psnr(left, right)), mae=mae(left, right), cosine=cosine(left, right)
    )
