"""The small Lance's sizes, as the JSON files of its checkpoint hold them."""

from __future__ import annotations

from typing import Any

from core.demo.tokenizer import ENTRIES, SPECIALS, VOCAB_ROWS
from core.lance.config import LanceConfig

VAE_DIM = 16
"""Base width of the VAE's encoder and decoder; the released one has 160 and 256."""

VISION_CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "depth": 6,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_heads": 4,
    "in_channels": 3,
    "out_hidden_size": 256,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3, 5],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
"""Content of Qwen2.5-VL-ViT/config.json."""


def _id(token: str) -> int:
    return ENTRIES + SPECIALS.index(token)


LLM_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_ROWS,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_dropout": 0.0,
    "bos_token_id": _id("<|endoftext|>"),
    "eos_token_id": _id("<|im_end|>"),
    "vision_start_token_id": _id("<|vision_start|>"),
    "vision_end_token_id": _id("<|vision_end|>"),
    "vision_token_id": _id("<|vision_pad|>"),
    "image_token_id": _id("<|image_pad|>"),
    "video_token_id": _id("<|video_pad|>"),
    "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": VISION_CONFIG,
    "model_type": "qwen2_5_vl",
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 70,
}
"""Content of llm_config.json; ``tie_word_embeddings`` is as in Lance's own file, where it is not honoured."""


def lance_config() -> LanceConfig:
    """The sizes as core.lance takes them."""
    return LanceConfig.from_dict(LLM_CONFIG, VISION_CONFIG)
