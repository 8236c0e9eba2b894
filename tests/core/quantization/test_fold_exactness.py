"""With rounding off, a folded Lance computes what the unfolded one does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from core.lance.cache import KVCache
from core.lance.decoder import Routing
from core.lance.roles import Role
from core.lance.structure import lance_structure
from core.quantization.folds import fold_norm, fold_rows, scale_columns
from core.quantization.values import per_query_head, per_value_channel


def fold_values(model: Any, layer: int, s: torch.Tensor, gen: torch.Tensor) -> None:
    """Divide the value channels of both experts by ``s``, and ``gen`` those of the generation expert instead."""
    config = model.config
    for suffix, scale in (("", s), ("_moe_gen", gen)):
        attention = model.get_submodule(f"language_model.model.layers.{layer}.self_attn")
        v, o = (attention.get_submodule(f"{name}_proj{suffix}") for name in "vo")
        v.weight.data = fold_rows(v.weight.data, scale)
        v.bias.data = v.bias.data / scale
        columns = per_query_head(scale, config.num_heads, config.head_dim)
        o.weight.data = scale_columns(o.weight.data, columns)


def fold_everything(model: Any, layers: int, stored: torch.dtype) -> None:
    """Scale every foldable input of ``model`` by random factors over four powers of two, in place."""
    generator = torch.Generator().manual_seed(5)
    for layer in range(layers):
        channels = model.config.num_kv_heads * model.config.head_dim
        s = torch.exp2(torch.rand(channels, generator=generator) * 4 - 2)
        fold_values(model, layer, s, s)
    for group in lance_structure(layers).groups():
        if group.norm is None and group.rows_of is None:
            continue
        linears = [model.get_submodule(name) for name in group.linears]
        s = torch.exp2(torch.rand(linears[0].weight.shape[1], generator=generator) * 4 - 2)
        if group.norm is not None:
            norm = model.get_submodule(group.norm)
            folded, s = fold_norm(norm.weight.data.float(), s, stored)
            norm.weight.data = folded.float()
        else:
            assert group.rows_of is not None
            up = model.get_submodule(group.rows_of)
            up.weight.data = fold_rows(up.weight.data, s)
        for linear in linears:
            linear.weight.data = scale_columns(linear.weight.data, s)


@torch.inference_mode()
def run_two_calls(model: Any, experts: tuple[list[bool], list[bool]]) -> list[torch.Tensor]:
    """Two calls on one cache, the second reading the first's keys and values; True marks rows of gen."""
    generator = torch.Generator().manual_seed(6)
    decoder, cache = model.language_model.model, KVCache(model.config.num_layers, capacity=64)
    outputs, first = [], 0
    for flags in experts:
        is_gen = torch.tensor(flags)
        roles = torch.where(is_gen, int(Role.NOISY), int(Role.TEXT)).to(torch.int8)
        x = torch.randn(len(flags), model.config.hidden_size, generator=generator)
        cos, sin = model.rotary(torch.arange(first, first + len(flags)).expand(3, -1))
        hidden = decoder(x, cos, sin, Routing.of(is_gen, roles), cache, causal=True)
        outputs += [model.logits(hidden[~is_gen]), model.velocity(hidden[is_gen])]
        first += len(flags)
    return outputs


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "experts",
    [
        ([False] * 9, [False] * 4),
        ([True] * 7, [True] * 5),
        ([False, True, True, False, False, True], [True, False, True, True, False]),
    ],
    ids=["und", "gen", "mixed"],
)
def test_folded_and_unfolded_outputs_agree(
    tiny_pipeline: Any, experts: tuple[list[bool], list[bool]], stored: torch.dtype
) -> None:
    folded = copy.deepcopy(tiny_pipeline.model)
    fold_everything(folded, folded.config.num_layers, stored)
    plain, scaled = run_two_calls(tiny_pipeline.model, experts), run_two_calls(folded, experts)
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_scale_of_its_own_for_each_expert_would_break_mixed_sequences(tiny_pipeline: Any) -> None:
    folded = copy.deepcopy(tiny_pipeline.model)
    channels = folded.config.num_kv_heads * folded.config.head_dim
    fold_values(folded, 1, torch.full((channels,), 2.0), torch.full((channels,), 0.5))
    experts = ([False, True, True, False, False, True], [True, False, True, True, False])
    plain, scaled = run_two_calls(tiny_pipeline.model, experts), run_two_calls(folded, experts)
    assert not torch.allclose(plain[0], scaled[0], atol=1e-2, rtol=1e-2)


def test_every_query_head_takes_the_scale_of_the_head_it_reads() -> None:
    s = torch.arange(1.0, 9.0)
    columns = per_query_head(s, heads=6, head_dim=4)
    assert columns.view(6, 4).tolist() == [s[:4].tolist()] * 3 + [s[4:].tolist()] * 3
    assert torch.equal(per_value_channel(columns, kv_heads=2, head_dim=4), s)


def test_a_folded_norm_and_its_scale_multiply_to_the_norm() -> None:
    generator = torch.Generator().manual_seed(7)
    norm = torch.randn(256, generator=generator)
    norm[:3] = torch.tensor([0.0, 1e-42, -2.5])
    s = torch.exp(torch.randn(256, generator=generator) * 3)
    folded, effective = fold_norm(norm, s, torch.bfloat16)
    assert folded.dtype == torch.bfloat16
    assert bool((effective > 0).all()) and bool(effective.isfinite().all())
    assert torch.allclose(folded.float() * effective, norm, rtol=1e-6, atol=1e-38)
    # The scale is the one asked for, but for the rounding of the stored norm.
    assert torch.allclose(effective[3:], s[3:], rtol=2**-8)
