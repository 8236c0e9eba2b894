"""Exports of causal LMs for mlx-lm, whose own decoders run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoders
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError, UsageError
from core.formats.exported import Exported
from core.formats.mlx_export import export
from core.quantization import job
from core.runtime.causal_lm import load_text_model

mx: Any = pytest.importorskip("mlx.core", reason="needs the extra 'mlx'")
mx.set_default_device(mx.cpu)
mlx_lm: Any = pytest.importorskip("mlx_lm", reason="needs the extra 'mlx'")

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.randint(0, 380, (1, 100), generator=torch.Generator().manual_seed(1))


def compare(folder: Path, output: Path, *, exact: float) -> Exported:
    """Export, load as the export says, and compare logits with ours, both in float32."""
    exported = export(folder, output, lambda text: None)
    trusted = "trust_remote_code=True" in exported.loads_with
    model, tokenizer = mlx_lm.load(str(output), trust_remote_code=trusted)
    own = load_text_model(folder, "cpu", torch.float32)
    assert tokenizer.encode("Two words.") == own.tokenizer("Two words.")["input_ids"]
    with torch.inference_mode():
        wanted = own.model(input_ids=TOKENS).logits[0].float()
    model.set_dtype(mx.float32)
    found = torch.tensor(np.array(model(mx.array(TOKENS.numpy()))))[0]
    assert float((found - wanted).norm() / wanted.norm()) < exact
    return exported


@pytest.mark.parametrize("kind", list(tiny_decoders.KINDS))
def test_mlx_lm_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    tiny_decoders.write(folder, kind)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    exported = compare(folder, tmp_path / "out", exact=1e-5)
    assert exported.left_out == () and "trust" not in exported.loads_with


@pytest.mark.parametrize(
    ("kind", "sizes", "trusted"),
    [
        ("llama", {"rope_parameters": LLAMA3}, False),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, False),
        ("qwen3", {"attention_bias": True}, True),
    ],
)
def test_ropes_and_biases_that_mlx_lm_looks_for_elsewhere(
    tmp_path: Path, kind: str, sizes: dict[str, Any], trusted: bool
) -> None:
    folder = tiny_decoders.write(tmp_path / kind, kind, **sizes)
    # Stored as float32 here, which the export rounds and says so.
    exported = compare(folder, tmp_path / "out", exact=0.02)
    assert exported.left_out == ("the precision of F32: rounded to bfloat16",)
    assert ("trust_remote_code=True" in exported.loads_with) is trusted
    assert (tmp_path / "out" / "mlx_decoder.py").exists() is trusted


COMPACT = """name = "{name}"
[format]
bits = 4
group = 32
symmetric = true
[head]
bits = 8
group = 32
symmetric = true
[embedding]
bits = 4
group = 32
symmetric = true
"""


@pytest.mark.parametrize(
    ("kind", "recipe", "exact"),
    [
        ("llama", 'name = "float"\n[format]\ntype = "nvfp4"\n', 1e-5),
        ("smollm", COMPACT.format(name="compact"), 0.02),
        ("qwen2.5", COMPACT.format(name="compact").replace("symmetric = true", "symmetric = false", 1), 0.05),
    ],
)
def test_variants_are_carried(hf_world: Any, tmp_path: Path, kind: str, recipe: str, exact: float) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    spec = {
        "checkpoint": str(hf_world.folder(kind)),
        "recipe": str(tmp_path / "recipe.toml"),
        "device": "cpu",
    }
    job.run(spec | {"output": str(tmp_path / "variant")}, hf_world.context)
    exported = compare(tmp_path / "variant", tmp_path / "out", exact=exact)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == config["quantization"], (
        "nothing of compressed-tensors is left in it"
    )
    assert ("trust_remote_code=True" in exported.loads_with) is (config["quantization"]["mode"] == "nvfp4")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in card and "with the very codes of the variant" in card


def rewritten(folder: Path, **keys: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def test_a_window_that_mlx_lm_does_not_keep_is_named(tmp_path: Path) -> None:
    folder = rewritten(tiny_decoders.write(tmp_path / "mistral", "mistral"), sliding_window=128)
    exported = export(folder, tmp_path / "out", lambda text: None)
    assert any("window of 128 tokens" in each for each in exported.left_out)


def test_code_that_a_checkpoint_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder = rewritten(
        tiny_decoders.write(tmp_path / "qwen2", "qwen2"), model_file=str(tmp_path / "theirs.py")
    )
    exported = export(folder, tmp_path / "out", lambda text: None)
    assert "trust" not in exported.loads_with and not (tmp_path / "ran").exists()
    assert "model_file" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "starcoder2"}, "model_type 'starcoder2': .* compared are llama, mistral"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type is 'yarn'"),
    ],
)
def test_what_mlx_lm_computes_otherwise_is_refused(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    folder = rewritten(tiny_decoders.write(tmp_path / "llama", "llama"), **keys)
    with pytest.raises(UsageError, match=message):
        export(folder, tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / "llama", "llama")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.extra.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.extra\.weight"):
        export(folder, tmp_path / "out", lambda text: None)
