"""From latents to decoder tokens: position rows, timestep embedding, and back."""

from __future__ import annotations

import math

import torch
from torch import nn

from core.errors import UsageError
from core.lance.config import MAX_LATENT_FRAMES, MAX_LATENT_SIDE

FREQUENCY_CHANNELS = 256
"""Width of the sinusoid that embeds a timestep."""


def _axis(coordinates: torch.Tensor, channels: int) -> torch.Tensor:
    rates = 1.0 / 10000 ** (torch.arange(channels // 2, dtype=torch.float64) / (channels / 2.0))
    angles = coordinates.to(torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def latent_position_ids(grid: tuple[int, int, int]) -> torch.Tensor:
    """Rows of the latent position table for a block of grid (t, h, w): int64 [t * h * w].

    Rows and columns beyond 64 alias with their neighbours, as upstream's do.

    Raises:
        UsageError: more latent frames than the table has.
    """
    frames, rows, columns = grid
    if frames > MAX_LATENT_FRAMES:
        raise UsageError(
            f"{frames} latent frames asked for, the position table has {MAX_LATENT_FRAMES}; use fewer"
        )
    t, h, w = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    return (t * MAX_LATENT_SIDE**2 + h * MAX_LATENT_SIDE + w).flatten()


def latent_position_rows(ids: torch.Tensor, hidden_size: int, *, rounded: bool) -> torch.Tensor:
    """The rows ``ids`` of the fixed 3-D sine-cosine table, computed on demand: float32 [n, hidden_size].

    Channels split into T, H and W (a third each, made even downwards; W takes the rest), sine before cosine, in float64
    before the cast. ``rounded``: round to bfloat16 as upstream's cast does.
    """
    third = hidden_size // 3 // 2 * 2
    side = MAX_LATENT_SIDE
    t, h, w = ids // side**2, ids // side % side, ids % side
    rows = torch.cat([_axis(t, third), _axis(h, third), _axis(w, hidden_size - 2 * third)], dim=1).to(
        torch.float32
    )
    return rows.to(torch.bfloat16).to(torch.float32) if rounded else rows


class TimestepEmbedder(nn.Module):
    """Sinusoid of the flow time (not scaled by 1000), then linear, SiLU, linear. Parameter names are Lance's."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_CHANNELS, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    @staticmethod
    def sinusoid(times: torch.Tensor) -> torch.Tensor:
        """Cosines then sines of times [n] at 128 rates: float32 [n, 256]."""
        half = FREQUENCY_CHANNELS // 2
        rates = torch.exp(
            -math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half
        )
        angles = times.to(torch.float32)[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Embed flow times [n] in 0..1: [n, hidden] in the parameters' dtype."""
        # A variant may hold the weight as codes; the bias is in the dtype that runs.
        bias = self.mlp[0].bias
        assert isinstance(bias, torch.Tensor)
        return self.mlp(self.sinusoid(times).to(bias.dtype))
