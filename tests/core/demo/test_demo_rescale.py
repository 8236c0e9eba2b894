"""Rescaling channels by powers of two changes no bit of any output, and can be undone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.checkpoints.describe import OWN_FILE, own_record
from core.demo import CHECKPOINT, rescale
from core.demo.sizes import LLM_CONFIG
from core.errors import CheckpointError
from core.lance.generation import drawing, start_noise, teacher_forced
from core.lance.loading import load_lance
from core.lance.prompts import INSTRUCTION_IMAGE


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rescale", str(folder)])
    rescale.main()


@pytest.fixture(scope="module")
def rescaled(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rescaled copy of the tiny model."""
    folder = tmp_path_factory.mktemp("rescaled") / "downloads"
    shutil.copytree(tiny_checkpoint.parent, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, folder / tiny_checkpoint.name)
    return folder / tiny_checkpoint.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_of_any_output_changes(tiny_checkpoint: Path, rescaled: Path, dtype: torch.dtype) -> None:
    picture = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
    logits, velocities = [], []
    for folder in (tiny_checkpoint, rescaled):
        pipeline = load_lance(folder, "cpu", dtype)
        logits.append(teacher_forced(pipeline, [picture], "What is it?", INSTRUCTION_IMAGE, [5, 80, 200, 3]))
        wanted = drawing(pipeline, "a red circle", 64, 96)
        with torch.inference_mode():
            velocities.append(wanted.velocity(start_noise(24, 3), 0.7))
    assert torch.equal(*logits)
    assert torch.equal(*velocities)
    assert logits[0].isfinite().any() and velocities[0].abs().max() > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, rescaled))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 40, "rescaling touches every norm and its readers"


def test_factors_are_powers_of_two_with_a_few_outliers() -> None:
    found = rescale.factors(10_000, torch.Generator().manual_seed(1))
    exponents = found.log2()
    assert torch.equal(exponents, exponents.round())
    assert exponents.abs().max() == rescale.LARGEST
    assert exponents.std() > 1
    assert (exponents >= 5).sum() > 2 * (exponents <= -5).sum()


def test_a_checkpoint_is_rescaled_only_once(rescaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (rescaled / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="rescaled already"):
        run(monkeypatch, rescaled)
    assert (rescaled / "model.safetensors").read_bytes() == before
    assert own_record(rescaled)["defaults"], "the rest of the record is kept"


def test_undoing_gives_back_every_bit(tiny_checkpoint: Path, rescaled: Path) -> None:
    layers = json.loads((tiny_checkpoint / "llm_config.json").read_text())["num_hidden_layers"]
    before = load_file(tiny_checkpoint / "model.safetensors")
    back = rescale.unscale(load_file(rescaled / "model.safetensors"), layers, own_record(rescaled))
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert rescale.unscale(before, layers, own_record(tiny_checkpoint)) is before, "never rescaled"


def test_the_shipped_weights_are_the_recorded_rescaling_of_even_ones() -> None:
    layers, record = LLM_CONFIG["num_hidden_layers"], own_record(CHECKPOINT)
    shipped = load_file(CHECKPOINT / "model.safetensors")
    even = rescale.unscale(shipped, layers, record)
    made = record["rescaled"]
    again = rescale.rescale(even, layers, made["seed"], made["spread"])
    assert all(torch.equal(again[name], shipped[name]) for name in shipped)
    for name in (name for name in shipped if "layernorm" in name):
        before, after = (
            float(w[name].float().abs().max() / w[name].float().abs().mean()) for w in (even, shipped)
        )
        assert before < 10 and after > 4 * before, name


def test_factors_of_other_code_are_not_guessed_at(rescaled: Path) -> None:
    record = own_record(rescaled)
    record["rescaled"]["largest"] = 7
    with pytest.raises(CheckpointError, match=OWN_FILE):
        rescale.unscale({}, 0, record)


def test_a_weight_at_the_edge_of_its_type_is_refused() -> None:
    tensors = load_file(CHECKPOINT / "model.safetensors")
    name = "language_model.model.layers.0.input_layernorm.weight"
    tensors[name] = torch.full_like(tensors[name], 3e38)
    with pytest.raises(CheckpointError, match="input_layernorm"):
        rescale.rescale(tensors, LLM_CONFIG["num_hidden_layers"])
