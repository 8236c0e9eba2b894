"""A decoder as data: which linears share an input, where a scale of that input can be folded, what has a bias.

A family of checkpoints describes itself once as a ``Structure`` (``core.lance.structure``,
``core.huggingface.structure``); calibration, quantization, storage and runtime read nothing else of it. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Family = Literal["lance", "huggingface"]
Kind = Literal["qkv", "o", "gate_up", "down"]
Expert = Literal["und", "gen"]
"""``und`` is also the one expert of a decoder that has no second."""
KINDS: tuple[Kind, ...] = ("qkv", "o", "gate_up", "down")

LINEARS_OF: dict[Kind, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The linears of each kind of group, as paths below the layer."""
LINEARS = tuple(linear for kind in KINDS for linear in LINEARS_OF[kind])
"""The target linears of one expert of a layer."""

NORMS: dict[Kind, str] = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
"""The norm whose output a kind of group reads."""

HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms of each head of queries and keys, where a decoder has them."""


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
    """Linear whose rows can take ``1/s``: up_proj before down_proj, as ``act(g) * u`` is linear in ``u``."""

    @property
    def key(self) -> str:
        """Name of the shared input, for statistics files: ``layers.3.und.qkv``."""
        return f"layers.{self.layer}.{self.expert}.{self.kind}"


@dataclass(frozen=True)
class Structure:
    """A decoder whose layers run norm, q/k/v, attention, o, norm, gate/up, down; once for each of its experts."""

    family: Family
    layers: int
    prefix: str
    """Before a layer's index: ``model.layers.``."""
    experts: Mapping[Expert, str]
    """Suffix of the modules of each expert: ``_moe_gen`` for Lance's second, none for the first."""
    head_dim: int
    biases: frozenset[str]
    """Which of ``LINEARS`` have a bias."""
    head_norms: bool
    """Queries and keys pass ``HEAD_NORMS``, of ``head_dim`` channels."""
    norm_eps: float
    activation: str
    """Of the gate, by transformers' word for it: ``silu``."""
    head: str
    """Module of the output head."""
    embedding: str
    """Module of the input embedding."""
    tied: bool
    """Head and embedding are one tensor, stored as the embedding's."""
    untouched: tuple[str, ...]
    """Linears that stay as they are, as compressed-tensors' ``ignore`` names them (``re:`` begins a pattern)."""
    time: tuple[str, ...] = ()
    """Linears that embed the time of a flow, where a model has them."""

    @property
    def outer(self) -> dict[str, tuple[str, ...]]:
        """Modules outside the layers that a recipe may quantize too, by its word for them."""
        return {"head": (self.head,), "embedding": (self.embedding,), "time": self.time}

    def module(self, layer: int, path: str, expert: Expert = "und") -> str:
        """Full name of a module of an expert: ``(0, "mlp.up_proj", "gen")`` -> ``…layers.0.mlp_moe_gen.up_proj``.

        The suffix stands behind the block of an MLP, and behind the last part of anything else.
        """
        block, dot, leaf = path.partition(".")
        suffix = self.experts[expert]
        named = f"{block}{suffix}{dot}{leaf}" if block == "mlp" else f"{path}{suffix}"
        return f"{self.prefix}{layer}.{named}"

    def layer_groups(self, layer: int) -> list[LinearGroup]:
        """The groups of one layer, four for each expert, und before gen, each in the order the layer runs them."""
        return [self._group(layer, expert, kind) for expert in self.experts for kind in KINDS]

    def groups(self) -> list[LinearGroup]:
        """The groups of all layers; their linears are the target linears."""
        return [group for layer in range(self.layers) for group in self.layer_groups(layer)]

    def target_linears(self) -> list[str]:
        """Full names of all target linears, in the order of ``groups``: 504 of a full-size Lance."""
        return [name for group in self.groups() for name in group.linears]

    def layer_of(self, name: str) -> int | None:
        """The layer that a tensor belongs to; None outside the layers."""
        found = self._layer_pattern.match(name)
        return int(found.group(1)) if found else None

    @cached_property
    def _layer_pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.prefix) + r"(\d+)\.")

    def bias_of(self, linear: str) -> str | None:
        """The key of a target linear's bias, None where it has none."""
        path = linear.removeprefix(self.prefix).partition(".")[2]
        for suffix in sorted(self.experts.values(), key=len, reverse=True):
            path = path.replace(suffix, "") if suffix else path
        return f"{linear}.bias" if path in self.biases else None

    def _group(self, layer: int, expert: Expert, kind: Kind) -> LinearGroup:
        return LinearGroup(
            layer,
            expert,
            kind,
            tuple(self.module(layer, linear, expert) for linear in LINEARS_OF[kind]),
            self.module(layer, NORMS[kind], expert) if kind in NORMS else None,
            self.module(layer, "mlp.up_proj", expert) if kind == "down" else None,
        )
