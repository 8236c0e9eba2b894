"""Three-dimensional rotary positions (M-RoPE, Qwen2-VL, arXiv 2409.12191) and Lance's position ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TEMPORAL_STEP = 2
"""Position units between two temporal positions of one visual block (tokens per second 2 x one second)."""

VIT_TEMPORAL_ORIGIN = 1000
"""Where the T row of a ViT block starts in sequences that also hold clean source latents."""


def inverse_frequencies(head_dim: int, theta: float, *, rounded: bool) -> torch.Tensor:
    """``theta ** (-2j / head_dim)`` for j < head_dim / 2, float32.

    ``rounded``: round to bfloat16 as upstream's cast of the whole model does (SPEC 15.1); angles stay float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    return frequencies.to(torch.bfloat16).to(torch.float32) if rounded else frequencies


def cos_sin(
    position_ids: torch.Tensor, frequencies: torch.Tensor, sections: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary tables for tokens at three-dimensional positions.

    Args:
        position_ids: integers [3, n], rows T, H, W.
        frequencies: float32 [head_dim / 2].
        sections: how many frequencies take their angle from T, H and W.

    Returns:
        cos and sin, float32 [n, head_dim]; both halves of a head use the same angles.
    """
    angles = position_ids.to(torch.float32)[:, :, None] * frequencies
    parts = angles.split(list(sections), dim=-1)
    mixed = torch.cat([part[row] for row, part in enumerate(parts)], dim=-1)
    full = torch.cat([mixed, mixed], dim=-1)
    return full.cos(), full.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads [..., n, heads, head_dim] by tables [..., n, head_dim], pairing first and second half."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)


def text_positions(start: int, count: int) -> torch.Tensor:
    """Positions of ``count`` text tokens from ``start``: int64 [3, count], three equal rows."""
    return torch.arange(start, start + count).expand(3, -1)


def block_positions(start: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """Positions of one visual block's tokens, t-major then h then w: int64 [3, t * h * w]."""
    frames, rows, columns = grid
    t, h, w = torch.meshgrid(
        torch.arange(frames) * TEMPORAL_STEP, torch.arange(rows), torch.arange(columns), indexing="ij"
    )
    return torch.stack([t.flatten(), h.flatten(), w.flatten()]) + start


def block_extent(grid: tuple[int, int, int]) -> int:
    """How far the position counter moves over a visual block of merged grid (t, h, w)."""
    frames, rows, columns = grid
    return max(TEMPORAL_STEP * (frames - 1), rows - 1, columns - 1) + 1
