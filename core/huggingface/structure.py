"""The decoder of a Hugging Face causal LM as data, read from config.json and the names in its files; no torch.

Any model whose layers hold exactly ``input_layernorm``, ``self_attn.{q,k,v,o}_proj``, ``post_attention_layernorm`` and
``mlp.{gate,up,down}_proj`` is understood (Llama, Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM and others), with biases, head
norms and tied embeddings as its files have them. What is not in the names, that a norm multiplies by its weight, is
checked on the modules (``loading.empty_model``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from core.checkpoints.describe import HF_CONFIG_FILE, read_json
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.quantization.groups import HEAD_NORMS, LINEARS, NORMS, Structure

PREFIX = "model.layers."
HEAD, EMBEDDING, NORM = "lm_head", "model.embed_tokens", "model.norm"

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$")
"""Tables that older files hold and that the model computes."""

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

_LEAVES = re.compile(r"\.weight_(packed|scale|zero_point|shape|global_scale)$")
_PATTERN = "norm, q/k/v, o, norm, gate/up, down"


def read_structure(folder: Path) -> Structure:
    """The decoder of the checkpoint or variant in ``folder``.

    Raises:
        CheckpointError: its layers hold something else, or lack something; what was found is named.
    """
    return structure_of(TensorSource.open(folder), read_json(folder / HF_CONFIG_FILE), folder)


def structure_of(source: TensorSource, config: dict[str, Any], folder: Path) -> Structure:
    """The decoder whose tensors are in ``source``; ``folder`` is named in errors."""
    kind = architecture(config)
    layers: dict[int, set[str]] = {}
    outside: set[str] = set()
    for name in source.keys():  # noqa: SIM118 - not a dict
        plain = _LEAVES.sub(".weight", name)
        if COMPUTED.match(plain):
            continue
        found = re.match(re.escape(PREFIX) + r"(\d+)\.(.+)$", plain)
        if found:
            layers.setdefault(int(found.group(1)), set()).add(found.group(2))
        else:
            outside.add(plain)

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"{folder}: {kind}: {what}; the decoders that can be quantized have layers of {_PATTERN} "
            "(Llama, Mistral, Qwen2, Qwen3, SmolLM)"
        )

    needed = {f"{linear}.weight" for linear in LINEARS} | {f"{norm}.weight" for norm in NORMS.values()}
    optional = {f"{linear}.bias" for linear in LINEARS} | {f"{norm}.weight" for norm in HEAD_NORMS}
    count = _number(config, "num_hidden_layers", folder)
    if set(layers) != set(range(count)):
        raise refuse(f"{len(layers)} layers {PREFIX}N are in the files, wanted {count} by {HF_CONFIG_FILE}")
    first = layers[0]
    for layer, names in sorted(layers.items()):
        place = f"{PREFIX}{layer}"
        if missing := sorted(needed - names):
            raise refuse(f"{place} has no {missing[0]}")
        if unknown := sorted(names - needed - optional):
            raise refuse(f"{place} has a {unknown[0]}")
        if different := sorted(names ^ first):
            raise refuse(f"{place} and {PREFIX}0 differ in {different[0]}")
    head_norms = {f"{norm}.weight" for norm in HEAD_NORMS} & first
    if len(head_norms) == 1:
        raise refuse(f"{PREFIX}0 has {head_norms.pop()} alone")
    embedding, norm, head = (f"{name}.weight" for name in (EMBEDDING, NORM, HEAD))
    for name in sorted({embedding, norm} - outside):
        raise refuse(f"{name} is missing")
    for name in sorted(outside - {embedding, norm, head}):
        raise refuse(f"{name} is not known")
    rows = _rows(source, f"{PREFIX}0.self_attn.q_proj")
    heads = _number(config, "num_attention_heads", folder)
    head_dim, left = divmod(rows, heads)
    if left or _rows(source, f"{PREFIX}0.self_attn.k_proj") % head_dim:
        raise refuse(f"q_proj has {rows} rows, which {heads} heads do not share evenly")
    if head_norms and source.shape(f"{PREFIX}0.{HEAD_NORMS[0]}.weight") != (head_dim,):
        found_shape = list(source.shape(f"{PREFIX}0.{HEAD_NORMS[0]}.weight"))
        raise refuse(f"{HEAD_NORMS[0]} has shape {found_shape}, wanted one of each head, [{head_dim}]")
    activation = str(config.get("hidden_act") or "silu")
    if activation not in ACTIVATIONS:
        raise refuse(f"hidden_act is {activation!r}, known are {', '.join(ACTIVATIONS)}")
    return Structure(
        family="huggingface",
        layers=count,
        prefix=PREFIX,
        experts={"und": ""},
        head_dim=head_dim,
        biases=frozenset(linear for linear in LINEARS if f"{linear}.bias" in first),
        head_norms=bool(head_norms),
        norm_eps=float(config.get("rms_norm_eps") or 1e-6),
        activation=activation,
        head=HEAD,
        embedding=EMBEDDING,
        tied=head not in outside or bool(config.get("tie_word_embeddings")),
        untouched=(HEAD,),
    )


def architecture(config: dict[str, Any]) -> str:
    """What a config.json says the model is: ``Qwen2ForCausalLM``."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else str(config.get("model_type", "unknown"))


def _rows(source: TensorSource, linear: str) -> int:
    stored = f"{linear}.weight" if f"{linear}.weight" in source else f"{linear}.weight_packed"
    return source.shape(stored)[0]


def _number(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{folder / HF_CONFIG_FILE}: {key} is {value!r}, wanted a whole number")
    return value
