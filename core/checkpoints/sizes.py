"""Sizes of whole Lances as data: the released one, and one small enough for a test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from core.errors import UsageError


@dataclass(frozen=True)
class Sizes:
    """The configuration files of a checkpoint and the widths of its VAE."""

    llm: dict[str, Any]
    """Content of llm_config.json."""
    vision: dict[str, Any]
    """Content of Qwen2.5-VL-ViT/config.json."""
    vae: tuple[int, int]
    """Base widths of the VAE's encoder and decoder."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Generation defaults that suit the size, where upstream's do not."""

    def with_layers(self, layers: int) -> Sizes:
        """The same widths with another number of decoder layers.

        Raises:
            UsageError: fewer than one.
        """
        if layers < 1:
            raise UsageError(f"{layers} layers asked for, at least 1 is needed")
        return replace(self, llm={**self.llm, "num_hidden_layers": layers})


_VISION = {"hidden_act": "silu", "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2,
           "spatial_patch_size": 14, "temporal_patch_size": 2, "window_size": 112, "tokens_per_second": 2}  # fmt: skip

_LLM = {"model_type": "qwen2_5_vl", "hidden_act": "silu", "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "attention_dropout": 0.0, "tie_word_embeddings": True, "sliding_window": 32768,
        "use_sliding_window": False, "max_window_layers": 70}  # fmt: skip
"""``tie_word_embeddings`` is as in Lance's own file, where it is not honoured."""

SIZES: dict[str, Sizes] = {
    "3b": Sizes(
        llm={
            **_LLM,
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        vision={
            **_VISION,
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        vae=(160, 256),
    ),
    "tiny": Sizes(
        llm={
            **_LLM,
            "vocab_size": 1040, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        vision={
            **_VISION,
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        vae=(8, 8),
        defaults={"resolution": "image_256res", "height": 96, "width": 96, "num_steps": 8},
    ),
}  # fmt: skip
"""By name: the released Lance_3B, and a tiny one whose vocabulary covers the embedded checkpoint's tokenizer."""


def sizes(name: str) -> Sizes:
    """The sizes called ``name``.

    Raises:
        UsageError: there are none of that name.
    """
    if name not in SIZES:
        raise UsageError(f"{name}: no such size; known are {', '.join(SIZES)}")
    return SIZES[name]
