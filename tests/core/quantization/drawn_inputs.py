"""Weights and inputs drawn at random, shaped like those of a real layer: correlated channels, some far louder."""

from __future__ import annotations

import torch

from core.quantization.losses import Inputs


def correlated(
    outputs: int, channels: int, count: int, seed: int, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 [outputs, channels] and ``count`` rows of input whose channels vary together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, channels, generator=generator) * 0.02
    mixing = torch.randn(channels // 4, channels, generator=generator)
    rows = torch.randn(count, channels // 4, generator=generator) @ mixing / (channels // 4) ** 0.5
    rows += 0.3 * torch.randn(count, channels, generator=generator)
    return weight, rows * torch.exp(torch.randn(channels, generator=generator) * spread)


def inputs_of(rows: torch.Tensor, sample: torch.Tensor) -> Inputs:
    """``rows`` to score on and ``sample`` to fit to, of one bucket."""
    everything = torch.cat([rows, sample])
    mean_sq = everything.square().mean(0)
    return Inputs(
        rows,
        torch.zeros(len(rows), dtype=torch.int64),
        torch.ones(1),
        everything.abs().mean(0),
        mean_sq,
        sample,
        torch.full((len(sample),), 1 / max(len(sample), 1)),
    )
