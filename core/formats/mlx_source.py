"""What an export for mlx-lm is made from: the parts of a decoder, and the config.json that builds it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.checkpoints.describe import HF_CONFIG_FILE, CheckpointInfo
from core.checkpoints.layout import layout_of, packed_weights
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError, UsageError
from core.formats.understanding import Part, Stored, left_behind, qwen3_sizes, rounds_rotary, units
from core.huggingface.loading import load_tokenizer as load_causal_tokenizer
from core.huggingface.structure import COMPUTED, NORM
from core.lance.config import LanceConfig
from core.lance.loading import load_tokenizer
from core.lance.prompts import IM_END
from core.lance.rotary import inverse_frequencies
from core.quantization.groups import HEAD_NORMS, LINEARS, NORMS, Structure
from core.runtime.check import variant_schemes

DECODERS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type of a causal LM -> module of mlx-lm that computes the same; each was compared."""

LANCE_DECODER = "qwen3"
"""With biases on q, k and v it is Lance's understanding expert."""

ROPES = ("default", "linear", "llama3")
"""Kinds of rotary scaling that both sides compute alike."""

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "attention_bias", "mlp_bias",
)  # fmt: skip
"""Keys of config.json that mlx-lm has defaults of its own for, or none."""

_DROPPED = {
    "quantization_config", "quantization", "quantize_activations", "model_file", "auto_map", "lance_workbench",
}  # fmt: skip
"""Keys that tell mlx-lm and transformers how to read weights, or to run code, that are not in the export."""


@dataclass(frozen=True)
class Source:
    """A decoder as it is stored, and how mlx-lm is to build it."""

    info: CheckpointInfo
    stored: Stored
    units: list[list[Part]]
    """Embedding, layer by layer, final norm and head: what is held in memory together."""
    config: dict[str, Any]
    """config.json, without what is quantized."""
    own: dict[str, Any]
    """What ``mlx_decoder`` is told."""
    beyond: bool
    """mlx-lm's own class is not enough, whatever the formats of the weights."""
    left_out: list[str] = field(default_factory=list)
    """What is not carried, each in words."""

    @property
    def parts(self) -> list[Part]:
        """Of all units."""
        return [part for unit in self.units for part in unit]


def open_source(info: CheckpointInfo) -> Source:
    """The decoder of a checkpoint or variant; every tensor of its files is a part of it or named in ``left_out``.

    Raises:
        UsageError: a causal LM of a kind that was not compared with mlx-lm's, or that mlx-lm computes otherwise.
        CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
    """
    stored = Stored(TensorSource.open(info.path), variant_schemes(info.path))
    return _lance(info, stored) if info.family == "lance" else _huggingface(info, stored)


def _lance(info: CheckpointInfo, stored: Stored) -> Source:
    config = LanceConfig.from_folder(info.path)
    groups = units(config)
    for part in (part for unit in groups for part in unit):
        stored.check(part)
    taken = {key for unit in groups for part in unit for key in stored.keys(part)}
    tokenizer = load_tokenizer(info.path)
    body = {
        **qwen3_sizes(info, config),
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": tokenizer.convert_tokens_to_ids(IM_END),
        "pad_token_id": tokenizer.pad_token_id,
    }
    own: dict[str, Any] = {
        "decoder": LANCE_DECODER,
        "biases": [linear for linear in LINEARS if linear in config.structure.biases],
        "vocabulary": len(tokenizer),
    }
    if rounds_rotary(info):
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, rounded=True)
        own["rope_inverse_frequencies"] = frequencies.tolist()
    left_out = left_behind(info.path, stored.files, taken, config)
    return Source(info, stored, groups, body, own, beyond=True, left_out=left_out)


def _huggingface(info: CheckpointInfo, stored: Stored) -> Source:
    from transformers import AutoConfig

    kind = str(info.config.get("model_type"))
    if kind not in DECODERS:
        raise UsageError(
            f"{info.name}: model_type {kind!r}: mlx-lm's decoder for it was not compared with transformers'; compared "
            f"are {', '.join(DECODERS)}. `mlx_lm.convert` may know it"
        )
    layout, files = layout_of(info.path), stored.files
    load_causal_tokenizer(info.path)
    layout.check(files, packed_weights(files))
    structure = layout.structure
    resolved = AutoConfig.from_pretrained(info.path, local_files_only=True)
    left_out: list[str] = []
    body = {key: value for key, value in info.config.items() if key not in _DROPPED}
    body |= {key: getattr(resolved, key) for key in _SIZES if getattr(resolved, key, None) is not None}
    body |= {"head_dim": structure.head_dim, "tie_word_embeddings": structure.tied, "torch_dtype": "bfloat16"}
    body |= _rope(info, resolved)
    if "dtype" in body:
        body["dtype"] = "bfloat16"
    if structure.activation not in ("silu", "swish"):
        raise UsageError(
            f"{info.name}: hidden_act is {structure.activation!r}, mlx-lm's {kind} has 'silu'; it cannot run there"
        )
    if _slides(info, resolved):
        body.pop("layer_types", None)
        left_out.append(
            f"the window of {resolved.sliding_window} tokens that its attention looks back over: mlx-lm's "
            f"{DECODERS[kind]} attends to all of a longer text"
        )
    groups = _units(structure, layout.shapes)
    taken = {key for unit in groups for part in unit for key in stored.keys(part)}
    for key in files.keys():  # noqa: SIM118
        if key in taken or COMPUTED.match(key):
            continue
        if key != f"{structure.head}.weight" or not structure.tied:
            raise CheckpointError(f"{files.entry(key).file}: {key} is no tensor of its model; remove it")
        left_out.append(f"{key}, a second copy of the embedding, which the model ties it to")
    # mlx-lm's Qwen3 has no biases, transformers' may have.
    biases = [linear for linear in LINEARS if linear in structure.biases] if kind == "qwen3" else []
    own = {"decoder": DECODERS[kind], "biases": biases}
    return Source(info, stored, groups, body, own, beyond=bool(biases), left_out=left_out)


def _units(structure: Structure, shapes: dict[str, tuple[int, ...]]) -> list[list[Part]]:
    """The parts of a causal LM, in the order of ``understanding.units``."""

    def part(name: str) -> Part:
        return Part(name, shapes[f"{name}.weight"], f"{name}.bias" in shapes)

    inside = [*LINEARS, *NORMS.values(), *(HEAD_NORMS if structure.head_norms else ())]
    layers = [[part(structure.module(layer, path)) for path in inside] for layer in range(structure.layers)]
    last = [part(NORM)] if structure.tied else [part(NORM), part(structure.head)]
    return [[part(structure.embedding)], *layers, last]


def _rope(info: CheckpointInfo, resolved: Any) -> dict[str, Any]:
    """The rotary keys at the top level, where every decoder of mlx-lm looks for them.

    Raises:
        UsageError: a kind of scaling that mlx-lm computes otherwise, or not at all.
    """
    found = dict(getattr(resolved, "rope_parameters", None) or {})
    kind = str(found.get("rope_type") or "default")
    if kind not in ROPES or float(found.get("partial_rotary_factor") or 1.0) != 1.0:
        what = f"rope_type is {kind!r}" if kind not in ROPES else "its rope turns part of each head"
        raise UsageError(
            f"{info.path / HF_CONFIG_FILE}: {what}; what was compared with mlx-lm's is {', '.join(ROPES)} over "
            "whole heads. `mlx_lm.convert` may know it"
        )
    if not isinstance(found.get("rope_theta"), int | float):
        raise CheckpointError(f"{info.path / HF_CONFIG_FILE}: rope_theta is {found.get('rope_theta')!r}")
    scaling = None if kind == "default" else {key: v for key, v in found.items() if key != "rope_theta"}
    return {"rope_theta": float(found["rope_theta"]), "rope_scaling": scaling}


def _slides(info: CheckpointInfo, resolved: Any) -> bool:
    """Whether the model attends within a window that is shorter than what it reads, where mlx-lm does not."""
    window = getattr(resolved, "sliding_window", None)
    if not isinstance(window, int) or window >= int(getattr(resolved, "max_position_embeddings", 0) or 0):
        return False
    kinds = getattr(resolved, "layer_types", None) or []
    return info.config["model_type"] == "mistral" or "sliding_attention" in kinds
