"""Variants whose groups of linears have widths of their own: written, read back by others, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoints.source import TensorSource
from core.errors import UsageError
from core.quantization import job
from core.runtime import enforcement, load_model
from core.runtime.linear import QuantizedLinear

WIDTHS = '[widths]\n"layers.*.und.down" = 6\n"layers.1.gen.qkv" = 8\n"layers.2.*" = 3\n\n'


STEPS = """
[[steps]]
kind = "values"
exponents = 1

[[steps]]
kind = "awq"
exponents = 1
"""


def recipe_file(folder: Path, tables: str) -> Path:
    path = folder / "mine.toml"
    head = 'name = "mine"\n[format]\nbits = 4\ngroup = 32\nsymmetric = false\n[calibration]\nmin_tokens = 1\n'
    path.write_text(f"{head}{tables}{STEPS}")
    return path


@pytest.fixture(scope="module")
def made(tiny_world: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model in four widths."""
    path = recipe_file(tmp_path_factory.mktemp("recipe"), WIDTHS)
    return job.run(spec(tiny_world, tiny_checkpoint, path), tiny_world.context)


def spec(tiny_world: Any, tiny_checkpoint: Path, recipe: Path) -> dict[str, Any]:
    calibration = str(tiny_world.calibration)
    return {
        "checkpoint": str(tiny_checkpoint),
        "recipe": str(recipe),
        "calibration": calibration,
        "device": "cpu",
    }


def width(linear: str) -> int:
    if ".layers.2." in linear:
        return 3
    if ".layers.1." in linear and linear.endswith("_moe_gen") and linear.rpartition(".")[2][0] in "qkv":
        return 8
    return 6 if linear.endswith("mlp.down_proj") else 4


def test_a_variant_of_several_widths_is_stored_and_runs(made: Any) -> None:
    folder = Path(made["path"])
    pipeline = load_model(folder, "cpu", torch.float32)
    running = enforcement(pipeline)
    assert running.scheme == "int3/4/6/8 asym g32"
    modules = {
        name: module for name, module in pipeline.model.named_modules() if isinstance(module, QuantizedLinear)
    }
    assert {name: module.scheme.bits for name, module in modules.items()} == {
        name: width(name) for name in modules
    }
    records = json.loads((folder / "lance_workbench.json").read_text())["linears"]
    assert {row["linear"]: row["scheme"] for row in records} == {
        name: f"int{width(name)} asym g32" for name in modules
    }
    # What is predicted is what is stored, to the byte.
    assert made["size_bytes"] == sum(entry.nbytes for entry in TensorSource.open(folder).entries.values())
    assert "as int3/4/6/8 asym g32" in (folder / "README.md").read_text()


def test_the_compressed_tensors_package_finds_every_linears_own_width(made: Any) -> None:
    theirs = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    folder = Path(made["path"])
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = theirs.QuantizationConfig.model_validate(config).config_groups
    pipeline = load_model(folder, "cpu", torch.float32)
    source = TensorSource.open(folder)
    found = {name: scheme for scheme in groups.values() for name in scheme.targets}
    assert len(found) == 42
    for name, scheme in found.items():
        keys = [key for key in source.keys() if key.startswith(f"{name}.weight_")]  # noqa: SIM118
        local = {key.rpartition(".")[2]: source.get(key) for key in keys}
        read = PackedQuantizationCompressor.decompress(local, scheme)["weight"]
        module = pipeline.model.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert torch.equal(read, module.weight()), name


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            '[widths]\n"layers.*.*.v_proj" = 8\n\n',
            r"recipe mine asks q_proj, k_proj in 4 bits and v_proj in 8 bits in layers\.0\.und\.qkv",
        ),
        ('[widths]\n"layers.9.*" = 8\n\n', r'"layers\.9\.\*" matches no group of this checkpoint'),
    ],
)
def test_impossible_widths_leave_nothing(
    tables: str, message: str, tiny_world: Any, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    asked = spec(tiny_world, tiny_checkpoint, recipe_file(tmp_path, tables))
    with pytest.raises(UsageError, match=message):
        job.run(asked | {"output": str(tmp_path / "out")}, context)
    assert not (tmp_path / "out").exists()
    assert context.store.checkpoints("variant") == []
