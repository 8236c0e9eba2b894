"""Checkpoints and variants made in a moment, for exports to read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.layout import structure_of
from core.formats.compressed_tensors import quantization_config, to_tensors
from core.quantization.integer import quantize
from core.quantization.rounding import Rounding
from core.quantization.scheme import NVFP4, Scheme


def write_variant(
    checkpoint: Path, folder: Path, scheme_of: Callable[[str], Scheme], outer: dict[str, Scheme]
) -> Path:
    """A variant of ``checkpoint`` whose linears are rounded plainly."""
    structure = structure_of(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    schemes = {name: scheme_of(name) for name in structure.target_linears()}
    for name, scheme in {**schemes, **outer}.items():
        weight = tensors.pop(f"{name}.weight").float()
        rounded: Any = quantize(weight, scheme)
        if scheme is NVFP4:
            rounded = Rounding(NVFP4, False).grid(weight, torch.ones(weight.shape[1])).encode(weight)
        tensors |= to_tensors(name, rounded)
    shutil.copytree(checkpoint, folder)
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    config["quantization_config"] = quantization_config(
        next(iter(schemes.values())), list(structure.untouched), outer, schemes
    )
    path.write_text(json.dumps(config))
    return folder


def first_layers(checkpoint: Path, folder: Path, count: int) -> Path:
    """The first layers of a Lance as a Lance: converting takes a second a layer."""
    shutil.copytree(checkpoint.parent, folder)
    model = folder / checkpoint.name
    tensors = load_file(model / "model.safetensors")
    layer_of = structure_of(checkpoint).layer_of
    save_file({k: t for k, t in tensors.items() if (layer_of(k) or 0) < count}, model / "model.safetensors")
    config = json.loads((model / "llm_config.json").read_text())
    (model / "llm_config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
    return model


def write_causal(folder: Path, golden: Path) -> Path:
    """A tiny Qwen3 with an odd number of query heads for each key head, head and embedding tied."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=40, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1 if "norm" in name else 0, 0.1)
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(golden / "tokenizer_tiny" / name, folder / name)
    return folder
