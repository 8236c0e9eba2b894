"""The fold from v to o: one scale of the value channels, shared by all experts.

Attention mixes values of tokens of both experts (and of the cache), and its output goes to the o projection of
the token that asks. So one vector over the key/value heads' channels divides the rows and bias of both v
projections and multiplies the columns of both o projections, repeated for every query head that reads a
key/value head. A vector per expert would change the function of every mixed sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.quantization.awq import Choice, candidates, evenness
from core.quantization.folds import fold_rows, scale_columns
from core.quantization.groups import Expert, LinearGroup, Structure
from core.quantization.losses import BlockLoss, Inputs, linear_block
from core.quantization.recipe import ValuesStep
from core.quantization.rounding import Rounding


@dataclass(frozen=True)
class ValueFold:
    """The outcome of a search: what took the place of which tensor, and how each expert's o projection fares."""

    tensors: dict[str, Tensor]
    """float32 by full name: weights and biases of both v projections, weights of both o projections."""
    choices: dict[Expert, Choice]
    """By expert; the scale is that of the o projection's columns."""

    @property
    def biases(self) -> dict[str, Tensor]:
        """The folded tensors that are not quantized after."""
        return {name: tensor for name, tensor in self.tensors.items() if name.endswith(".bias")}


def per_query_head(s: Tensor, heads: int, head_dim: int) -> Tensor:
    """Scale of the o projection's columns [heads * head_dim] from one [kv_heads * head_dim] of value channels."""
    split = s.view(-1, 1, head_dim)
    return split.expand(-1, heads // split.shape[0], head_dim).flatten()


def per_value_channel(columns: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """Mean [kv_heads * head_dim] over the query heads that read a channel, of figures [heads * head_dim]."""
    return columns.view(kv_heads, -1, head_dim).mean(1).flatten()


def search_values(
    structure: Structure,
    layer: int,
    read: Callable[[str], Tensor],
    find_inputs: Callable[[LinearGroup], Inputs | None],
    step: ValuesStep,
    rounding_of: Callable[[LinearGroup], Rounding],
) -> ValueFold | None:
    """Look for a scale of the layer's value channels that lowers the loss of both o projections together.

    Magnitudes are pooled over the query heads that share a channel and over the experts, each against its own
    mean, before they are raised to a power.

    Args:
        structure: the decoder's.
        layer: its index.
        read: a tensor of the layer as float32 by full name.
        find_inputs: the calibration's view of a group's input.
        step: how many exponents to try.
        rounding_of: how a group's weights will be rounded, but for a compensation of errors.

    Returns:
        The fold, or None where none lowers the loss or an expert's input is not known well enough.
    """
    experts = tuple(structure.experts)
    groups = {(group.expert, group.kind): group for group in structure.layer_groups(layer)}
    o = {expert: groups[expert, "o"] for expert in experts}
    v = {expert: groups[expert, "qkv"].linears[2] for expert in experts}
    inputs: dict[Expert, Inputs] = {}
    for expert in experts:
        found = find_inputs(o[expert])
        if found is None:
            return None
        inputs[expert] = found
    weights = {expert: read(f"{o[expert].linears[0]}.weight") for expert in experts}
    head_dim = structure.head_dim
    kv_heads = read(f"{v['und']}.weight").shape[0] // head_dim
    heads = weights["und"].shape[1] // head_dim

    def pooled(figures: dict[Expert, Tensor]) -> Tensor:
        parts = [
            per_value_channel(x / x.mean().clamp(min=1e-30), kv_heads, head_dim) for x in figures.values()
        ]
        return torch.stack(parts).mean(0)

    rounding = {e: rounding_of(o[e]) for e in experts}
    losses = {e: BlockLoss(linear_block, [weights[e]], inputs[e], rounding[e].seen) for e in experts}

    def value_of(expert: Expert, s: Tensor, rounding: Rounding) -> float:
        scaled = scale_columns(weights[expert], s)
        return losses[expert](rounding.roundtrip([scaled], inputs[expert].mean_sq / s.square()), s)

    one = torch.ones_like(inputs["und"].mean_abs)
    plain = {e: value_of(e, one, rounding[e].plain()) for e in experts}
    best = {
        e: Choice("identity", 0.0, one, plain[e], min(plain[e], value_of(e, one, rounding[e])))
        for e in experts
    }
    chosen: Tensor | None = None
    a = pooled({e: inputs[e].mean_abs for e in experts})
    w = pooled({e: evenness([weights[e]], rounding[e].scheme.group_size) for e in experts})
    for mode, exponent, wanted in candidates(a, w, step.exponents, duo=True):
        s = per_query_head(wanted, heads, head_dim)
        tried = {e: Choice(mode, exponent, s, plain[e], value_of(e, s, rounding[e])) for e in experts}
        if sum(c.loss_after for c in tried.values()) < sum(c.loss_after for c in best.values()):
            best, chosen = tried, wanted
    if chosen is None:
        return None
    tensors: dict[str, Tensor] = {}
    for expert in experts:
        tensors[f"{v[expert]}.weight"] = fold_rows(read(f"{v[expert]}.weight"), chosen)
        if bias := structure.bias_of(v[expert]):
            tensors[bias] = read(bias) / chosen
        tensors[f"{o[expert].linears[0]}.weight"] = scale_columns(weights[expert], best[expert].scale)
    return ValueFold(tensors, best)
