"""The Qwen2.5-VL vision tower, from transformers, and the patches it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from core.lance.config import LanceConfig

PATCH = 14
MERGE = 2
TEMPORAL_PATCH = 2

_ROTARY_THETA = 10000.0


class VisionTower(Qwen2_5_VisionTransformerPretrainedModel):
    """transformers' tower with exact attention per window; parameter names are Lance's below ``vit_model``."""

    def __init__(self, config: LanceConfig) -> None:
        known = {key: value for key, value in config.vision.items() if not key.startswith("_")}
        # The released file asks for flash attention; PyTorch's own kernel computes the same without that package.
        known.pop("attn_implementation", None)
        known.setdefault("out_hidden_size", config.hidden_size)
        vision: Any = Qwen2_5_VLVisionConfig(**known)
        vision._attn_implementation = "sdpa"
        super().__init__(vision)
        self._read: Callable[[], None] | None = None

    def postpone(self, read: Callable[[], None]) -> None:
        """Let ``read`` bring the parameters when the tower is first used."""
        self._read = read

    def reset_buffers(self, *, rounded: bool) -> None:
        """Recompute the rotary frequencies, which no checkpoint stores."""
        for module in self.modules():
            buffer = getattr(module, "inv_freq", None)
            if isinstance(buffer, torch.Tensor):
                exponents = torch.arange(0, 2 * buffer.shape[0], 2, dtype=torch.float32) / (
                    2 * buffer.shape[0]
                )
                frequencies = 1.0 / (_ROTARY_THETA**exponents)
                buffer.copy_(frequencies.to(torch.bfloat16) if rounded else frequencies)

    def features(self, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Merged features [sum t*h*w / 4, out_hidden].

        Args:
            patches: flattened patches [n, 1176] of all pictures, one after another.
            grids: per picture (t, h, w) in patches.

        Raises:
            CheckpointError: parameters read only now are not finite.
        """
        if self._read is not None:
            self._read()
            self._read = None
        weight: nn.Parameter = self.patch_embed.proj.weight
        out = self(
            patches.to(weight.device, weight.dtype), grid_thw=torch.tensor(grids, device=weight.device)
        )
        return out.pooler_output


def patchify(frames: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Flatten normalised frames into the tower's patches.

    Args:
        frames: float32 [3, T, H, W], H and W multiples of 28; an odd T repeats its last frame.

    Returns:
        patches float32 [t*h*w, 1176], rows in 2x2 merge groups, columns (channel, time, row, column); grid (t, h, w).
    """
    channels, count, height, width = frames.shape
    if count % TEMPORAL_PATCH:
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
        count += 1
    t, h, w = count // TEMPORAL_PATCH, height // PATCH, width // PATCH
    cut = frames.reshape(channels, t, TEMPORAL_PATCH, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    rows = cut.permute(1, 3, 6, 4, 7, 0, 2, 5, 8)
    return rows.reshape(t * h * w, channels * TEMPORAL_PATCH * PATCH * PATCH), (t, h, w)
