"""The search for a scale of the value channels that both experts share."""

from __future__ import annotations

import torch
from drawn_inputs import correlated, inputs_of

from core.lance.structure import lance_structure
from core.quantization.groups import LinearGroup
from core.quantization.losses import Inputs
from core.quantization.recipe import ValuesStep
from core.quantization.rounding import Rounding
from core.quantization.scheme import Scheme
from core.quantization.values import search_values

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 32, 48
LANCE = lance_structure(1, HEAD_DIM)
ROUNDING = Rounding(Scheme(4, 32, False), searched=True)


def layer(loud: float) -> tuple[dict[str, torch.Tensor], dict[str, Inputs]]:
    """Tensors of layer 0 and the inputs of its o projections, a few of whose channels are ``loud``."""
    generator = torch.Generator().manual_seed(11)
    tensors: dict[str, torch.Tensor] = {}
    inputs: dict[str, Inputs] = {}
    size = torch.ones(KV_HEADS, 1, HEAD_DIM)
    size[:, :, ::9] = loud
    columns = size.expand(-1, HEADS // KV_HEADS, -1).flatten()
    for number, (expert, suffix) in enumerate((("und", ""), ("gen", "_moe_gen"))):
        base = "language_model.model.layers.0.self_attn"
        weight, rows = correlated(HIDDEN, HEADS * HEAD_DIM, 300, number, spread=0.0)
        tensors[f"{base}.o_proj{suffix}.weight"] = weight
        tensors[f"{base}.v_proj{suffix}.weight"] = torch.randn(
            KV_HEADS * HEAD_DIM, HIDDEN, generator=generator
        )
        tensors[f"{base}.v_proj{suffix}.bias"] = torch.randn(KV_HEADS * HEAD_DIM, generator=generator)
        inputs[expert] = inputs_of(rows * columns, rows[:0])
    return tensors, inputs


def test_loud_value_channels_are_scaled_for_both_experts_alike() -> None:
    tensors, inputs = layer(12.0)
    fold = search_values(
        LANCE,
        0,
        tensors.__getitem__,
        lambda group: inputs[group.expert],
        ValuesStep(),
        lambda group: ROUNDING,
    )
    assert fold is not None and set(fold.choices) == {"und", "gen"}
    und, gen = fold.choices["und"], fold.choices["gen"]
    assert torch.equal(und.scale, gen.scale)
    before, after = und.loss_before + gen.loss_before, und.loss_after + gen.loss_after
    assert after < 0.9 * before
    s = und.scale.view(KV_HEADS, -1, HEAD_DIM)
    assert torch.equal(s[:, 0], s[:, 1]) and float(s[0, 0, 0]) > 2 * float(s[0, 0, 1])
    base = "language_model.model.layers.0.self_attn"
    for suffix in ("", "_moe_gen"):
        product = fold.tensors[f"{base}.v_proj{suffix}.bias"] * s[:, 0].flatten()
        assert torch.allclose(product, tensors[f"{base}.v_proj{suffix}.bias"])
    assert len(fold.tensors) == 6 and len(fold.biases) == 2


def test_a_scale_that_does_not_lower_the_joint_loss_is_not_kept() -> None:
    tensors, inputs = layer(1.0)
    found = search_values(
        LANCE,
        0,
        tensors.__getitem__,
        lambda group: inputs[group.expert],
        ValuesStep(),
        lambda group: ROUNDING,
    )
    if found is not None:
        flat = {e: c.loss_after for e, c in found.choices.items()}
        assert sum(flat.values()) < sum(c.loss_before for c in found.choices.values())


def test_an_expert_that_was_not_seen_leaves_the_values_alone() -> None:
    tensors, inputs = layer(12.0)

    def find(group: LinearGroup) -> Inputs | None:
        return inputs["und"] if group.expert == "und" else None

    assert search_values(LANCE, 0, tensors.__getitem__, find, ValuesStep(), lambda group: ROUNDING) is None
