"""``checkpoints verify`` looks at every file of a checkpoint, and at what a fetch said they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.describe import describe
from core.checkpoints.fetch import RECORD_FILE
from core.checkpoints.random import plan, write_random
from core.checkpoints.sizes import SIZES
from core.checkpoints.verify import verify
from core.errors import CheckpointError
from core.files import sha256_file

TOWER = "Qwen2.5-VL-ViT/vit.safetensors"
VAE = "Wan2.2_VAE.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random(tmp_path / "made", plan(SIZES["tiny"]))


def change(path: Path, by: Callable[[Tensors], object]) -> None:
    tensors = load_file(path)
    by(tensors)
    save_file(tensors, path)


def test_a_sound_checkpoint_has_the_hash_of_every_file(model: Path) -> None:
    found = verify(model)
    assert found.problems == []
    assert set(found.hashes) == {"model.safetensors", "vit.safetensors", VAE}
    assert found.hashes["vit.safetensors"] == sha256_file(model.parent / TOWER)


def test_faults_of_the_tower_and_the_vae_are_named(model: Path) -> None:
    def harm(tensors: Tensors) -> None:
        tensors.pop("merger.ln_q.weight")
        tensors["extra"] = torch.zeros(1)
        tensors["merger.mlp.0.bias"][0] = float("inf")
        tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][:8].clone()

    change(model.parent / TOWER, harm)
    change(model.parent / VAE, lambda t: t["conv2.bias"].fill_(float("nan")))
    problems = "\n".join(verify(model).problems)
    for wanted in (
        "vit.safetensors: merger.ln_q.weight is missing",
        "extra is no tensor of the vision tower",
        "merger.mlp.0.bias",
        "patch_embed.proj.weight has shape [8, ",
        "conv2.bias",
    ):
        assert wanted in problems


def test_a_file_that_is_not_what_was_fetched(model: Path) -> None:
    files = {
        name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for name in (f"{model.name}/model.safetensors", TOWER, VAE)
        if (path := model.parent / name).is_file()
    }
    (model.parent / RECORD_FILE).write_text(json.dumps({"files": files}))
    assert verify(model).problems == []
    change(model / "model.safetensors", lambda t: t["llm2vae.bias"].add_(1))
    (problem,) = verify(model).problems
    assert "model.safetensors: SHA-256" in problem and "fetch it again" in problem


def test_a_file_that_is_not_what_was_made(model: Path) -> None:
    record = json.loads((model / "lance_workbench.json").read_text())
    record["files"] = {"model.safetensors": sha256_file(model / "model.safetensors")}
    (model / "lance_workbench.json").write_text(json.dumps(record))
    assert verify(model).problems == []
    change(model / "model.safetensors", lambda t: t["llm2vae.bias"].add_(1))
    (problem,) = verify(model).problems
    assert "model.safetensors: SHA-256" in problem and "make the variant again" in problem


def test_codes_in_the_place_of_a_weight_are_named(model: Path) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    change(model / "model.safetensors", lambda t: t.update({name: t[name].to(torch.int8)}))
    (problem,) = verify(model).problems
    assert f"model.safetensors: {name} is stored as I8, wanted F32, F16, BF16, F64" in problem


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"name": "../../evil"},
            r"lance_workbench.json: name '../../evil': wanted one that a folder can have",
        ),
        ({"name": "/tmp/evil"}, "name '/tmp/evil': wanted one"),
        ({"name": ".."}, "name '..': wanted one"),
        ({"name": 5}, "name 5: wanted one"),
        ({"name": "mine", "defaults": 5}, "lance_workbench.json: defaults 5: wanted an object"),
    ],
)
def test_a_checkpoint_cannot_have_its_variants_written_elsewhere(
    model: Path, own: dict[str, object], message: str
) -> None:
    (model / "lance_workbench.json").write_text(json.dumps(own))
    with pytest.raises(CheckpointError, match=message):
        describe(model)


@pytest.mark.parametrize("file", ["lance_workbench.json", "llm_config.json", "model.safetensors.index.json"])
def test_json_deeper_than_can_be_read_is_named(model: Path, file: str) -> None:
    (model / file).write_text("[" * 5000)
    with pytest.raises(CheckpointError, match=rf"{file}: no "):
        describe(model)


def test_a_hidden_folder_has_a_name_that_is_not(model: Path) -> None:
    (model / "lance_workbench.json").unlink()
    assert describe(model.rename(model.with_name(".mine"))).name == "mine"
