from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from core.checkpoints.describe import describe
from core.checkpoints.source import TensorSource
from core.formats.variant_folder import ShardWriter


def test_units_are_cut_into_shards_that_an_index_joins(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_shard_bytes=1000)
    units = [
        {f"layer{i}.a": torch.full((100,), float(i)), f"layer{i}.b": torch.arange(i + 1)} for i in range(6)
    ]
    for unit in units:
        writer.add(unit)
    written = writer.finish()
    assert len(written.files) == 3
    assert all(path.stat().st_size < 1000 + 300 for path in tmp_path.glob("model-*")), "beside their headers"
    assert not list(tmp_path.glob("part-*"))
    for name, digest in written.files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    source = TensorSource.open(tmp_path)
    assert written.size_bytes == source.nbytes
    for unit in units:
        for name, tensor in unit.items():
            assert torch.equal(source.get(name), tensor)


def test_what_waits_is_written_before_a_unit_would_make_it_too_much(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_shard_bytes=1000)
    sizes: list[int] = []
    for index, elements in enumerate((100, 100, 300, 50, 200)):
        writer.add({f"unit{index}": torch.zeros(elements)})
        sizes.append(len(list(tmp_path.glob("part-*"))))
    # Two fit; the third is too large for any shard and waits for none; the last fills one to the byte.
    assert sizes == [0, 0, 2, 2, 3]


def test_a_variant_folder_holds_all_a_reader_needs(tiny_world: Any, tiny_checkpoint: Path) -> None:
    result = tiny_world.variants["int4-awq"]
    folder = Path(result["path"])
    info = describe(folder)
    assert (info.kind, info.name, info.missing) == ("variant", "lance-tiny_int4-awq-g32", [])
    assert info.nbytes == result["size_bytes"]
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "llm_config.json"):
        assert (folder / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    record = json.loads((folder / "lance_workbench.json").read_text())
    assert record["source_path"] == str(tiny_checkpoint)
    assert record["defaults"]["height"] == 96
    assert record["calibration"]["name"] == "both"
    assert len(record["linears"]) == 42
    assert 'name = "int4-awq"' in (folder / "recipe.toml").read_text()
    assert "group = 32" in (folder / "recipe.toml").read_text()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: lance-tiny\n")
    assert "| gen | down |" in card


def test_every_other_tensor_passes_through_as_bfloat16(tiny_world: Any, tiny_checkpoint: Path) -> None:
    source = TensorSource.open(tiny_checkpoint)
    variant = TensorSource.open(Path(tiny_world.variants["int4-minmax"]["path"]))
    quantized = {name for name in source.keys() if name not in variant}  # noqa: SIM118
    assert len(quantized) == 42
    for name in set(source.keys()) - quantized:
        assert torch.equal(variant.get(name), source.get(name).bfloat16()), name
