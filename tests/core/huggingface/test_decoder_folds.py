"""With rounding off, a folded causal LM computes what the unfolded one does: biases, GQA and tied heads included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
import torch

from core.huggingface.loading import load_causal_lm
from core.quantization.folds import fold_norm, fold_rows, scale_columns
from core.quantization.values import per_query_head
from core.runtime.causal_lm import load_text_model


def drawn(channels: int, generator: torch.Generator) -> torch.Tensor:
    """Factors over four powers of two."""
    return torch.exp2(torch.rand(channels, generator=generator) * 4 - 2)


def fold_everything(model: Any, structure: Any, stored: torch.dtype) -> None:
    """Scale every foldable input by random factors, where the structure says that they can be folded."""
    generator = torch.Generator().manual_seed(5)
    weights = dict(model.named_parameters())

    def divide_rows(linear: str, s: torch.Tensor) -> None:
        weights[f"{linear}.weight"].data = fold_rows(weights[f"{linear}.weight"].data, s)
        if bias := structure.bias_of(linear):
            weights[bias].data = weights[bias].data / s

    for layer in range(structure.layers):
        v, o = (structure.module(layer, f"self_attn.{name}_proj") for name in "vo")
        s = drawn(len(weights[f"{v}.weight"]), generator)
        divide_rows(v, s)
        heads = weights[f"{o}.weight"].shape[1] // structure.head_dim
        columns = per_query_head(s, heads, structure.head_dim)
        weights[f"{o}.weight"].data = scale_columns(weights[f"{o}.weight"].data, columns)
    for group in structure.groups():
        if group.norm is None and group.rows_of is None:
            continue
        s = drawn(weights[f"{group.linears[0]}.weight"].shape[1], generator)
        if group.norm is not None:
            folded, s = fold_norm(weights[f"{group.norm}.weight"].data, s, stored)
            weights[f"{group.norm}.weight"].data = folded.float()
        else:
            divide_rows(group.rows_of, s)
        for linear in group.linears:
            weights[f"{linear}.weight"].data = scale_columns(weights[f"{linear}.weight"].data, s)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny_decoders.KINDS)
def test_folds_leave_the_logits_as_they_are(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    loaded = load_causal_lm(tiny_decoders.write(tmp_path / kind, kind), "cpu", torch.float32)
    tokens, _ = loaded.encode("You see, but you do not observe. The distinction is clear.")
    before = loaded.logits(tokens, 1)
    fold_everything(loaded.model, loaded.structure, stored)
    after = loaded.logits(tokens, 1)
    assert not torch.equal(before, after)
    assert float((before - after).abs().max()) <= 1e-4 * max(1.0, float(before.abs().max()))


@pytest.mark.parametrize("kind", ["llama-biases", "qwen2", "qwen3"])
def test_with_eight_bits_what_is_folded_and_stored_says_the_same(kind: str, hf_world: Any) -> None:
    done = hf_world.variant(kind, hf_world.recipes["folds"])
    # Every norm, up projection's bias and value bias of two layers, as far as there are any.
    assert done["tensors"]["folded"] >= 4 and done["scaled"] > 0
    plain = load_causal_lm(hf_world.folder(kind), "cpu", torch.float32)
    ours = load_text_model(Path(done["path"]), "cpu", torch.float32)
    tokens, _ = plain.encode("There is nothing more deceptive than an obvious fact.")
    log_p, log_q = (torch.log_softmax(m.logits(tokens, 1).double(), -1) for m in (plain, ours))
    assert float((log_p.exp() * (log_p - log_q)).sum(-1).max()) < 1e-3
