"""NVFP4 variants from the job to the running model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.checkpoints.source import TensorSource
from core.lance.generation import teacher_forced
from core.lance.structure import lance_structure
from core.quantization import job
from core.runtime import enforcement, load_model
from core.runtime.linear import QuantizedLinear


@pytest.fixture(scope="module")
def variants(
    tiny_world: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("nvfp4")
    spec = {"checkpoint": str(tiny_checkpoint), "device": "cpu", "calibration": str(tiny_world.calibration)}
    made = {}
    for recipe in ("nvfp4", "nvfp4-best"):
        made[recipe] = job.run(spec | {"recipe": recipe, "output": str(place / recipe)}, tiny_world.context)
    return made


def test_a_variant_runs_as_stored_and_takes_four_and_a_half_bits(variants: dict[str, Any]) -> None:
    done = variants["nvfp4"]
    assert 4.5 <= done["bits_per_weight"] < 4.52
    pipeline = load_model(Path(done["path"]), "cpu", torch.float32)
    found = enforcement(pipeline)
    assert (found.swapped, found.scheme) == (42, "nvfp4")
    assert found.bytes_held == found.bytes_stored
    config = json.loads((Path(done["path"]) / "config.json").read_text())["quantization_config"]
    assert config["format"] == "nvfp4-pack-quantized"
    image = Image.linear_gradient("L").convert("RGB")
    logits = teacher_forced(pipeline, [image], "What is it?", "Look.", [5, 9, 30, 7], "image_256res")
    for module in pipeline.model.modules():
        if isinstance(module, QuantizedLinear):
            module.held = None
    unheld = teacher_forced(pipeline, [image], "What is it?", "Look.", [5, 9, 30, 7], "image_256res")
    assert torch.equal(logits, unheld)


def test_linears_that_runtimes_fuse_share_the_global_scale(variants: dict[str, Any]) -> None:
    source = TensorSource.open(Path(variants["nvfp4-best"]["path"]))
    for group in lance_structure(3).groups():
        found = {float(source.get(f"{name}.weight_global_scale")) for name in group.linears}
        assert len(found) == 1 and torch.frexp(torch.tensor(found.pop()))[0] == 0.5


def test_the_package_reads_the_weights_that_run(variants: dict[str, Any]) -> None:
    theirs = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    folder = Path(variants["nvfp4-best"]["path"])
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = theirs.QuantizationConfig.model_validate(config).config_groups["group_0"]
    source = TensorSource.open(folder)
    pipeline = load_model(folder, "cpu", torch.bfloat16)
    leaves = ("weight_packed", "weight_scale", "weight_global_scale")
    for name, module in pipeline.model.named_modules():
        if isinstance(module, QuantizedLinear):
            read = NVFP4PackedCompressor.decompress(
                {leaf: source.get(f"{name}.{leaf}") for leaf in leaves}, scheme
            )
            assert torch.equal(read["weight"], module.weight().bfloat16())
            assert torch.equal(read["weight"].float(), module.weight())


def test_every_step_lowers_the_loss(variants: dict[str, Any]) -> None:
    simple, best = variants["nvfp4"], variants["nvfp4-best"]
    assert simple["loss_after"] < simple["loss_before"]
    assert best["loss_after"] < 0.6 * simple["loss_after"]


def test_casting_a_module_leaves_its_stored_scales(variants: dict[str, Any]) -> None:
    pipeline = load_model(Path(variants["nvfp4"]["path"]), "cpu", torch.float32)
    module = next(m for m in pipeline.model.modules() if isinstance(m, QuantizedLinear))
    before = module.weight()
    module.to(torch.bfloat16)
    assert module.weight_scale.dtype == torch.float8_e4m3fn
    assert torch.equal(module.weight(), before)
    assert module(torch.ones(1, module.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16
