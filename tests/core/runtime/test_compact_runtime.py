"""Variants whose head and embedding are quantized too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from core.checkpoints.source import TensorSource
from core.errors import UsageError
from core.lance.generation import teacher_forced
from core.quantization import job
from core.runtime import enforcement, load_model
from core.runtime.embedding import QuantizedEmbedding
from core.runtime.linear import QuantizedLinear

RECIPE = """
name = "small"
[format]
bits = 4
group = 32
symmetric = false
[head]
bits = 8
group = 64
symmetric = true
[embedding]
bits = 4
group = 32
symmetric = true
[time]
bits = 8
group = 64
symmetric = true
"""
HEAD, EMBEDDING = "language_model.lm_head", "language_model.model.embed_tokens"


@pytest.fixture(scope="module")
def small(tiny_world: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("small")
    (place / "small.toml").write_text(RECIPE)
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(place / "small.toml"), "device": "cpu"}
    planned = job.run(spec | {"dry_run": True}, tiny_world.context)["plan"]
    done = job.run(spec | {"output": str(place / "variant")}, tiny_world.context)
    assert planned["size_bytes"] == done["size_bytes"]
    return done


TIMES = torch.tensor([0.1, 0.5, 1.0])


def logits(pipeline: Any) -> torch.Tensor:
    image = Image.linear_gradient("L").convert("RGB")
    found = teacher_forced(pipeline, [image], "What is it?", "Look.", [5, 9, 30, 7], "image_256res")
    return found[:, :1022]


def test_it_is_smaller_and_every_tensor_is_accounted_for(small: dict[str, Any], tiny_world: Any) -> None:
    portable = tiny_world.variants["int4-minmax"]
    assert small["size_bytes"] < portable["size_bytes"] - 1024 * 64 * 2 * 2 * 0.55
    assert small["tensors"]["quantized"] == 46
    assert small["tensors"]["read"] == sum(small["tensors"][key] for key in ("quantized", "folded", "passed"))


def test_flow_times_are_embedded_by_what_is_stored(small: dict[str, Any], tiny_pipeline: Any) -> None:
    embedder = load_model(Path(small["path"]), "cpu", torch.float32).model.time_embedder
    for name in ("mlp.0", "mlp.2"):
        module = embedder.get_submodule(name)
        assert isinstance(module, QuantizedLinear) and module.scheme.label == "int8 sym g64"
    mine, plain = embedder(TIMES), tiny_pipeline.model.time_embedder(TIMES)
    assert 1e-4 < float((mine - plain).norm() / plain.norm()) < 0.02


def test_what_runs_is_what_is_stored(small: dict[str, Any], tiny_checkpoint: Path) -> None:
    pipeline = load_model(Path(small["path"]), "cpu", torch.float32)
    assert enforcement(pipeline).swapped == 42
    head, embedding = pipeline.model.get_submodule(HEAD), pipeline.model.get_submodule(EMBEDDING)
    assert isinstance(head, QuantizedLinear) and head.scheme.label == "int8 sym g64"
    assert isinstance(embedding, QuantizedEmbedding) and embedding.scheme.label == "int4 sym g32"
    table = TensorSource.open(tiny_checkpoint).get(f"{EMBEDDING}.weight").float()
    ids = torch.tensor([[3, 900], [0, 3]])
    rows = embedding(ids)
    assert rows.shape == (2, 2, 64) and rows.dtype == torch.float32
    assert torch.equal(rows[0, 0], rows[1, 1])
    assert float((rows - table[ids]).norm() / table[ids].norm()) < 0.12
    mine = logits(pipeline)
    # The same weights in plain modules give the same logits.
    dense = nn.Embedding.from_pretrained(embedding(torch.arange(table.shape[0])))
    pipeline.model.language_model.model.embed_tokens = dense
    plain = nn.Linear(64, table.shape[0], bias=False)
    plain.weight.data = head.weight().float()
    pipeline.model.language_model.lm_head = plain
    assert torch.allclose(mine, logits(pipeline), atol=1e-5)


def test_rows_come_in_the_dtype_that_the_model_runs_in(small: dict[str, Any]) -> None:
    embedding = load_model(Path(small["path"]), "cpu", torch.bfloat16).model.get_submodule(EMBEDDING)
    assert embedding(torch.tensor([1])).dtype == torch.bfloat16
    scale = embedding.weight_scale.clone()
    embedding.float()
    assert embedding(torch.tensor([1])).dtype == torch.float32
    assert torch.equal(embedding.weight_scale, scale) and embedding.weight_scale.dtype == torch.bfloat16


def test_the_card_and_the_package_know_of_it(small: dict[str, Any]) -> None:
    folder = Path(small["path"])
    assert "the head as int8 sym g64 and the embedding as int4 sym g32" in (folder / "README.md").read_text()
    theirs = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = theirs.QuantizationConfig.model_validate(config).config_groups
    source = TensorSource.open(folder)
    pipeline = load_model(folder, "cpu", torch.float32)
    local = {leaf: source.get(f"{HEAD}.{leaf}") for leaf in ("weight_packed", "weight_scale", "weight_shape")}
    read = PackedQuantizationCompressor.decompress(local, groups["group_1"])["weight"]
    head = pipeline.model.get_submodule(HEAD)
    assert isinstance(head, QuantizedLinear) and torch.equal(read, head.weight())
    local = {
        leaf: source.get(f"{EMBEDDING}.{leaf}") for leaf in ("weight_packed", "weight_scale", "weight_shape")
    }
    read = PackedQuantizationCompressor.decompress(local, groups["group_2"])["weight"]
    embedding = pipeline.model.get_submodule(EMBEDDING)
    assert torch.equal(read.float(), embedding(torch.arange(len(read))))


def test_a_group_that_does_not_divide_the_embedding_is_named(
    tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(RECIPE.replace("bits = 8\ngroup = 64", "bits = 8\ngroup = 48"))
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(path), "device": "cpu"}
    with pytest.raises(
        UsageError, match=r"lm_head\.weight \[1040, 64\]: 64 columns do not divide into groups of 48"
    ):
        job.run(spec, context)
