"""The sizes of a decoder that Core ML is to get, or why it cannot get it."""

from __future__ import annotations

from typing import Any

from core.checkpoints.describe import HF_CONFIG_FILE, CheckpointInfo
from core.errors import CheckpointError
from core.formats.coreml_decoder import Sizes
from core.formats.understanding import rounds_rotary
from core.huggingface.structure import architecture
from core.quantization.groups import Structure

CONTEXT = 4096
"""Tokens that a cache holds at most; a model that was made for fewer gets fewer."""

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""model_type of the causal LMs whose arithmetic the decoder has."""

ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of the text."""


def lance_sizes(info: CheckpointInfo) -> tuple[Any, Sizes]:
    """The model of a Lance on the meta device, and the sizes of its text decoder.

    Raises:
        CheckpointError: a size is missing in its config.
    """
    from core.lance.config import LanceConfig
    from core.lance.loading import empty_lance
    from core.lance.rotary import inverse_frequencies

    config = LanceConfig.from_folder(info.path)
    # Text has equal positions in all three dimensions, for which M-RoPE is the ordinary rotation.
    sizes = Sizes(
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        context=min(CONTEXT, int(info.config.get("max_position_embeddings") or CONTEXT)),
        inv_freq=inverse_frequencies(config.head_dim, config.rope_theta, rounded=rounds_rotary(info)),
    )
    return empty_lance(config), sizes


def check_known(info: CheckpointInfo) -> None:
    """Check that the decoder has the arithmetic of a causal LM; there is one Lance.

    Raises:
        CheckpointError: it has not, or not that anybody knows.
    """
    kind = info.config.get("model_type")
    if info.family == "huggingface" and kind not in MODELS:
        raise CheckpointError(
            f"{info.path / HF_CONFIG_FILE}: {architecture(info.config)}: model_type is {kind!r}, Core ML gets "
            + ", ".join(MODELS)
        )


def causal_sizes(info: CheckpointInfo, structure: Structure) -> tuple[Any, Sizes]:
    """As ``lance_sizes``, of a causal LM.

    Raises:
        CheckpointError: its arithmetic is not the decoder's; what differs is named.
    """
    from core.huggingface.loading import empty_model

    place = info.path / HF_CONFIG_FILE
    if structure.activation not in ("silu", "swish"):
        raise CheckpointError(f"{place}: hidden_act is {structure.activation!r}, Core ML gets 'silu'")
    model = empty_model(info.path)
    config = model.config
    rotary = type(model.model.rotary_emb)(config=config)
    if rotary.rope_type not in ROTARY:
        raise CheckpointError(
            f"{place}: rope_type is {rotary.rope_type!r}, Core ML gets {', '.join(ROTARY)}, whose frequencies are "
            "the same for every length"
        )
    if rotary.inv_freq.shape != (structure.head_dim // 2,):
        raise CheckpointError(
            f"{place}: {2 * len(rotary.inv_freq)} of {structure.head_dim} channels of a head are rotated; "
            "Core ML gets heads that are rotated whole"
        )
    # Within its window, sliding attention sees what full attention does.
    lengths = [CONTEXT, config.max_position_embeddings, getattr(config, "sliding_window", None)]
    sizes = Sizes(
        layers=structure.layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=structure.head_dim,
        vocabulary=config.vocab_size,
        context=min(length for length in lengths if length),
        inv_freq=rotary.inv_freq.float(),
        rotary_scale=float(rotary.attention_scaling),
    )
    return model, sizes
