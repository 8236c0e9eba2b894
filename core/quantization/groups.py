"""Which linears share an input, and where a scale of that input can be folded: Lance's decoder layer as
data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.lance.decoder import GEN, target_name

Kind = Literal["qkv", "o", "gate_up", "down"]
Expert = Literal["und", "gen"]
EXPERTS: tuple[Expert, ...] = ("und", "gen")
KINDS: tuple[Kind, ...] = ("qkv", "o", "gate_up", "down")

_LINEARS: dict[Kind, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_NORMS: dict[Kind, str] = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}


@dataclass(frozen=True)
class LinearGroup:
    """Target linears of one layer and expert that read the same rows."""

    layer: int
    expert: Expert
    kind: Kind
    linears: tuple[str, ...]
    """Full module names."""
    norm: str | None
    """Module whose weight can take ``1/s`` of the input's channels: the norm before the group."""
    rows_of: str | None
    """Linear whose rows can take ``1/s``: up_proj before down_proj, as ``silu(g) * u`` is linear in ``u``."""

    @property
    def key(self) -> str:
        """Name of the shared input, for statistics files: ``layers.3.und.qkv``."""
        return f"layers.{self.layer}.{self.expert}.{self.kind}"


def layer_groups(layer: int) -> list[LinearGroup]:
    """The eight groups of one decoder layer, und before gen, each in the order the layer runs them."""
    return [_group(layer, expert, kind) for expert in EXPERTS for kind in KINDS]


def all_groups(num_layers: int) -> list[LinearGroup]:
    """The groups of all layers; their linears are the target linears, 504 at full size."""
    return [group for layer in range(num_layers) for group in layer_groups(layer)]


def target_linears(num_layers: int) -> list[str]:
    """Full names of all target linears, in the order of ``all_groups``."""
    return [name for group in all_groups(num_layers) for name in group.linears]


def _group(layer: int, expert: Expert, kind: Kind) -> LinearGroup:
    norm = None
    if kind in _NORMS:
        norm = f"language_model.model.layers.{layer}.{_NORMS[kind]}{GEN if expert == 'gen' else ''}"
    return LinearGroup(
        layer,
        expert,
        kind,
        tuple(target_name(layer, linear, expert) for linear in _LINEARS[kind]),
        norm,
        target_name(layer, "mlp.up_proj", expert) if kind == "down" else None,
    )


UNTOUCHED = ("language_model.lm_head", "vae2llm", "llm2vae", r"re:time_embedder\..*", r"re:vit_model\..*")
"""Linears that stay as they are, as compressed-tensors' ``ignore`` names them (``re:`` begins a pattern)."""
