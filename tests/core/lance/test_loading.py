"""Loading accounts for every key, and damaged checkpoints are named in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import describe
from core.checkpoints.verify import verify
from core.errors import CheckpointError, UsageError, WorkbenchError
from core.lance.generation import answer, imagine
from core.lance.loading import load_lance
from core.lance.preprocess import read_image

NORM = "language_model.model.layers.1.input_layernorm_moe_gen.weight"
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "downloads")
    return tmp_path / "downloads" / tiny_checkpoint.name


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


FAULTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing key": (lambda t: t.pop(NORM), f"{NORM} is missing"),
    "extra key": (lambda t: t.update({"connector.weight": torch.zeros(2)}), "connector.weight is no tensor"),
    "wrong shape": (lambda t: t.update({NORM: torch.ones(63)}), r"has shape \[63\], wanted \[64\]"),
    "NaN": (lambda t: t[QUERY].__setitem__((3, 4), float("nan")), f"{QUERY}.* 1 values that are NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(fault: str, copy: Path) -> None:
    edit, message = FAULTS[fault]
    change(copy, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lance(copy)
    assert "\n" not in str(caught.value)
    assert any(NORM in p or QUERY in p or "connector" in p for p in verify(copy).problems)


def test_truncated_file(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_lance(copy)
    with pytest.raises(CheckpointError, match="truncated"):
        describe(copy)


def test_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_lance(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "llm_config.json"])
def test_file_of_garbage(name: str, copy: Path) -> None:
    (copy / name).write_bytes(b"\xff\x00garbage" * 20)
    with pytest.raises(CheckpointError, match=name):
        load_lance(copy)


def test_every_key_is_accounted_for(copy: Path) -> None:
    stored = load_file(copy / "model.safetensors")
    pipeline = load_lance(copy, dtype=torch.float32)
    assert set(pipeline.report.loaded) == set(stored)
    for name, parameter in pipeline.model.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
    assert verify(copy).problems == []


def test_stored_position_table_is_ignored_and_reported(copy: Path) -> None:
    change(copy, lambda t: t.update({"latent_pos_embed.pos_embed": torch.zeros(4096, 64)}))
    assert load_lance(copy).report.ignored == ["latent_pos_embed.pos_embed"]


def test_separate_vision_tower_and_ema_file(copy: Path, tiny_pipeline: Any, golden: Path) -> None:
    """Upstream's other layout: the tower in its own file, the weights under their other name."""
    tensors = load_file(copy / "model.safetensors")
    vision = {k.removeprefix("vit_model."): v for k, v in tensors.items() if k.startswith("vit_model.")}
    save_file(vision, copy.parent / "Qwen2.5-VL-ViT" / "vit.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("vit_model.")}, copy / "ema.safetensors")
    (copy / "model.safetensors").unlink()
    image = read_image(golden / "media" / "img1.png")
    question = "What colour is the round shape on the left?"
    got = answer(load_lance(copy, dtype=torch.float32), [image], question, max_new_tokens=6)
    assert got.tokens == answer(tiny_pipeline, [image], question, max_new_tokens=6).tokens
    (copy.parent / "Qwen2.5-VL-ViT" / "vit.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no vision tower: wanted Qwen2.5-VL-ViT/vit.safetensors"):
        load_lance(copy)


def test_vision_tower_is_read_when_it_is_needed_and_checked_then(copy: Path, golden: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    vision = {k.removeprefix("vit_model."): v for k, v in tensors.items() if k.startswith("vit_model.")}
    vision["merger.mlp.0.bias"][3] = float("nan")
    save_file(vision, copy.parent / "Qwen2.5-VL-ViT" / "vit.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith("vit_model.")}, copy / "model.safetensors"
    )
    pipeline = load_lance(copy, dtype=torch.float32)
    assert all(p.is_meta for p in pipeline.model.vit_model.parameters())
    with pytest.raises(CheckpointError, match=r"vit.safetensors: merger.mlp.0.bias .* 1 values that are NaN"):
        answer(pipeline, [read_image(golden / "media" / "img1.png")], "What is this?", max_new_tokens=1)


def test_describe_says_what_is_missing(copy: Path) -> None:
    (copy / "merges.txt").unlink()
    (copy.parent / "Wan2.2_VAE.safetensors").unlink()
    info = describe(copy)
    assert info.kind == "checkpoint" and info.name == "lance-tiny"
    assert info.missing == ["merges.txt", "Wan2.2_VAE.pth"]
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        load_lance(copy)


def test_pth_vae_is_read_as_plain_tensors_only(copy: Path, golden: Path) -> None:
    folder = copy.parent
    tensors = load_file(folder / "Wan2.2_VAE.safetensors")
    (folder / "Wan2.2_VAE.safetensors").unlink()
    torch.save(tensors, folder / "Wan2.2_VAE.pth")
    assert load_lance(copy).vae.autoencoder is not None
    torch.save({"weights": tensors, "hook": Path}, folder / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match=r"Wan2.2_VAE\.pth"):
        _ = load_lance(copy).vae


def test_usage_errors(tiny_pipeline: Any, golden: Path) -> None:
    image = read_image(golden / "media" / "img1.png")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: answer(tiny_pipeline, [image], "what?", resolution="4k"), "4k: no such resolution"),
        (lambda: answer(tiny_pipeline, [image], "say <|im_end|> now"), r"the prompt holds <\|im_end\|>"),
        (lambda: imagine(tiny_pipeline, "a cube", 100, 96), "height 100 px .* nearest is 96"),
        (lambda: imagine(tiny_pipeline, "a cube", 96, 96, noise=torch.zeros(3, 48)), "noise of shape"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


def test_image_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_text("not a picture")
    with pytest.raises(WorkbenchError, match=r"cat\.png: not an image"):
        read_image(path)
    with pytest.raises(WorkbenchError, match=r"dog\.png: no such image"):
        read_image(tmp_path / "dog.png")
