"""Which decoders are understood, what is read of them, and that every other is refused by what was found in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.describe import describe
from core.checkpoints.layout import structure_of, words
from core.checkpoints.source import TensorSource
from core.checkpoints.verify import verify
from core.errors import CheckpointError
from core.huggingface.loading import load_causal_lm
from core.huggingface.structure import ACTIVATIONS
from core.quantization import losses

WORDS = {
    "llama": "2 layers, one expert; no biases",
    "llama-biases": "2 layers, one expert; biases on q, k, v, o, gate, up, down",
    "smollm": "2 layers, one expert; no biases; head tied to the embedding",
    "qwen2": "2 layers, one expert; biases on q, k, v; head tied to the embedding",
    "qwen2.5": "2 layers, one expert; biases on q, k, v",
    "qwen3": "2 layers, one expert; no biases; head norms",
    "mistral": "2 layers, one expert; no biases",
}


@pytest.mark.parametrize("kind", tiny_decoders.KINDS)
def test_every_family_is_recognised_verified_and_loaded(kind: str, tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / kind, kind, shards="60KB")
    info = describe(folder)
    assert (info.name, info.kind, info.family, info.missing) == (kind, "checkpoint", "huggingface", [])
    assert words(structure_of(folder)) == WORDS[kind]
    found = verify(folder)
    assert found.problems == [] and len(found.hashes) > 3, "in shards"
    loaded = load_causal_lm(folder, "cpu", torch.float32)
    tokens, given = loaded.encode("It is quite a three-pipe problem.")
    assert given == 1 and tokens[0] == 0, "the tokenizer's own beginning"
    model = tiny_decoders.build(kind)
    with torch.inference_mode():
        wanted = model(torch.tensor([tokens])).logits[0]
    assert torch.equal(loaded.logits(tokens, 1), wanted[:-1])


def test_the_named_activations_are_those_that_a_loss_can_compute() -> None:
    assert set(ACTIVATIONS) == set(losses.ACTIVATIONS)


Tensors = dict[str, torch.Tensor]


def rename(old: str, new: str) -> Callable[[Tensors], object]:
    def run(tensors: Tensors) -> None:
        for name in [name for name in tensors if re.search(old, name)]:
            tensors[re.sub(old, new, name)] = tensors.pop(name)

    return run


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            rename(r"layers\.1\.mlp\.gate_proj", "layers.1.mlp.experts.0.gate_proj"),
            "LlamaForCausalLM: model.layers.1 has no mlp.gate_proj.weight",
        ),
        (
            lambda t: t.update({"model.layers.0.pre_feedforward_layernorm.weight": torch.ones(64)}),
            "model.layers.0 has a pre_feedforward_layernorm.weight",
        ),
        (
            lambda t: t.update({"model.layers.1.self_attn.v_proj.bias": torch.ones(32)}),
            "model.layers.1 and model.layers.0 differ in self_attn.v_proj.bias",
        ),
        (rename(r"layers\.1\.", "layers.7."), "2 layers model.layers.N are in the files, wanted 2"),
        (lambda t: t.update({"model.visual.weight": torch.ones(2)}), "model.visual.weight is not known"),
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
    ],
)
def test_files_of_another_structure_are_refused_by_what_is_in_them(
    change: Callable[[Tensors], Any], wanted: str, tmp_path: Path
) -> None:
    folder = tiny_decoders.write(tmp_path / "other", "llama")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=re.escape(wanted)) as caught:
        structure_of(folder)
    assert "Llama, Mistral, Qwen2, Qwen3, SmolLM" in str(caught.value) and "\n" not in str(caught.value)


def test_a_norm_that_does_not_multiply_by_its_weight_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GemmaConfig

    config = GemmaConfig(**tiny_decoders.SIZES, head_dim=16, hidden_act="gelu_pytorch_tanh")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
    with pytest.raises(CheckpointError, match="GemmaRMSNorm does not multiply by its weight alone"):
        verify(tmp_path / "gemma")


def test_a_config_that_transformers_does_not_know_is_one_line(tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / "odd", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "never-heard-of"}))
    with pytest.raises(CheckpointError, match=r"config\.json: transformers cannot build its model") as caught:
        load_causal_lm(folder)
    assert "\n" not in str(caught.value)


def test_faults_of_the_files_are_named(tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / "harmed", "qwen2")
    path = folder / "model.safetensors"
    sound = load_file(path)
    bad = dict(sound)
    bad["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 64)
    bad["model.norm.weight"] = torch.full((64,), float("nan"))
    save_file(bad, path, metadata={"format": "pt"})
    problems = "\n".join(verify(folder).problems)
    assert "mlp.up_proj.weight has shape [64, 64], wanted [128, 64] by config.json" in problems
    assert "model.norm.weight [64] holds 64 values that are NaN" in problems
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has shape"):
        load_causal_lm(folder)
    (folder / "tokenizer.json").unlink()
    assert describe(folder).missing == ["tokenizer.json"]


def test_a_head_stored_beside_its_embedding_still_loads(tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / "twice", "smollm")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path, metadata={"format": "pt"})
    assert verify(folder).problems == []
    assert structure_of(folder).tied
    model = load_causal_lm(folder, "cpu", torch.float32).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" in TensorSource.open(folder)
