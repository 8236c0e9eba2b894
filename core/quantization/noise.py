"""Signal to quantization noise ratios of weights and of outputs, in decibels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from core.quantization.losses import BlockLoss, Inputs, linear_block

CEILING = 200.0
"""Decibels that a weight without any error counts as, so that means stay finite."""


def decibels(noise: float) -> float:
    """The ratio in dB of signal to a ``noise`` given as a share of the signal's energy."""
    return CEILING if noise <= 10 ** (-CEILING / 10) else -10 * math.log10(noise)


def weight_noise(weight: Tensor, runs: Tensor) -> float:
    """The energy of what rounding changed in ``weight`` [N, K], as a share of its own."""
    signal, noise = (float(torch.linalg.vector_norm(part)) for part in (weight, runs - weight))
    return (noise / max(signal, 1e-30)) ** 2


def output_noise(weight: Tensor, runs: Tensor, inputs: Inputs, seen: Callable[[Tensor], Tensor]) -> float:
    """The energy of what rounding changes in the outputs of a linear on the calibration's rows, as a share of that of
    the outputs; buckets of rows are weighed, and ``seen`` is, as in every other loss.
    """
    return BlockLoss(linear_block, [weight], inputs, seen)([runs], inputs.mean_abs.new_ones(weight.shape[1]))


def pooled(ratios: Iterable[float | None]) -> float | None:
    """The dB of the mean noise of several ratios in dB, each of its own signal; None of none."""
    noise = [10 ** (-ratio / 10) for ratio in ratios if ratio is not None]
    return decibels(math.fsum(noise) / len(noise)) if noise else None
