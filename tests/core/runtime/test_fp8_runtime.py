"""Variants whose generation expert is FP8, from the job to the running model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.source import TensorSource
from core.checkpoints.verify import verify
from core.errors import CheckpointError, UsageError
from core.formats.compressed_tensors import schemes_of
from core.lance.generation import drawing, start_noise
from core.lance.structure import lance_structure
from core.quantization import job
from core.quantization.scheme import FP8
from core.runtime import enforcement, load_model
from core.runtime.engine import Engine
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.memory import held_bytes

GROUPS = lance_structure(3).groups()
GEN = [name for group in GROUPS if group.expert == "gen" for name in group.linears]
CAPTION = "A red cube on a blue table."


@pytest.fixture(scope="module")
def variant(tiny_world: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = {"checkpoint": str(tiny_checkpoint), "device": "cpu", "calibration": str(tiny_world.calibration)}
    spec |= {"recipe": "int4-fp8", "group": 32, "output": str(tmp_path_factory.mktemp("fp8") / "variant")}
    recipe = tmp_path_factory.mktemp("recipe") / "mine.toml"
    # The tiny calibration keeps no sequences.
    text = (Path(job.__file__).parent / "recipes" / "int4-fp8.toml").read_text()
    recipe.write_text(text.replace('"quantized"', '"original"'))
    done = job.run(spec | {"recipe": str(recipe)}, tiny_world.context)
    assert done["loss_after"] < done["loss_before"]
    return Path(done["path"])


@pytest.fixture(scope="module")
def pipeline(variant: Path) -> Any:
    return load_model(variant, "cpu", torch.float32)


def fp8_linears(pipeline: Any) -> dict[str, Fp8Linear]:
    return {name: m for name, m in pipeline.model.named_modules() if isinstance(m, Fp8Linear)}


def test_the_generation_expert_is_fp8_and_the_other_int4(variant: Path, pipeline: Any) -> None:
    found = enforcement(pipeline)
    assert (found.swapped, found.scheme) == (42, "int4 asym g32 + fp8")
    assert found.bytes_held == found.bytes_stored
    assert found.kernel_path == "torch-reference:cpu + torch-reference:cpu:held"
    assert sorted(fp8_linears(pipeline)) == sorted(GEN)
    card = (variant / "README.md").read_text()
    assert "`pack-quantized` and `float-quantized`" in card and "int4 asym g32 + fp8" in card
    record = json.loads((variant / "lance_workbench.json").read_text())
    assert (record["scheme"]["bits"], record["gen"]) == (4, FP8.to_json())
    assert verify(variant).problems == []


def test_a_linear_rounds_its_rows_and_multiplies_what_is_stored(variant: Path, pipeline: Any) -> None:
    source = TensorSource.open(variant)
    for name, module in fp8_linears(pipeline).items():
        x = torch.randn(5, 7, module.in_features, generator=torch.Generator().manual_seed(1)) * 3
        scale = x.abs().amax(-1, keepdim=True) / 448
        rounded = (x / scale).to(torch.float8_e4m3fn).double() * scale.double()
        weight = source.get(f"{name}.weight").double() * source.get(f"{name}.weight_scale").double()
        bias = 0 if module.bias is None else module.bias.double()
        wanted = rounded @ weight.t() + bias
        assert float((module(x) - wanted).norm() / wanted.norm()) < 1e-6
        module.wide = None
        assert float((module(x) - wanted).norm() / wanted.norm()) < 1e-6
        module.hold()


@torch.inference_mode()
def test_the_engine_computes_what_the_modules_compute(variant: Path, pipeline: Any) -> None:
    """The fused linears too: gate and up of one product, SwiGLU rounded on the way to down."""
    fused = load_model(variant, "cpu", torch.float32)
    before = held_bytes(fused.model)
    fused.engine = Engine(fused.model)
    layer = fused.model.get_submodule("language_model.model.layers.0.mlp_moe_gen")
    storages = {layer.get_submodule(f"{n}_proj").weight.untyped_storage().data_ptr() for n in ("gate", "up")}
    assert len(storages) == 1 and held_bytes(fused.model) == before
    noise = start_noise(24, 3)
    theirs = drawing(pipeline, CAPTION, 64, 96)
    ours = fused.engine.velocities(drawing(fused, CAPTION, 64, 96))
    for time in (1.0, 0.6):
        for mine, wanted in zip(ours(noise, time, True), theirs.velocities(noise, time, True), strict=True):
            assert mine is not None
            # Sums taken in another order round some activation to its neighbour now and then.
            assert float((mine - wanted).norm() / wanted.norm()) < 2e-2


def test_casting_a_module_leaves_codes_and_scales(variant: Path) -> None:
    module = next(iter(fp8_linears(load_model(variant, "cpu", torch.float32)).values()))
    before = module.parts.dense()
    module.to(torch.bfloat16)
    assert (module.weight.dtype, module.weight_scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(module.parts.dense(), before)
    assert module(torch.ones(1, module.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_package_reads_the_weights_that_run(variant: Path, pipeline: Any) -> None:
    theirs = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor

    config = json.loads((variant / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    read = theirs.QuantizationConfig.model_validate(config)
    (scheme,) = [group for group in read.config_groups.values() if group.format == "float-quantized"]
    assert sorted(scheme.targets) == sorted(GEN)
    assert (scheme.input_activations.dynamic, scheme.input_activations.strategy) == (True, "token")
    source = TensorSource.open(variant)
    for name, module in fp8_linears(pipeline).items():
        state = {leaf: source.get(f"{name}.{leaf}") for leaf in ("weight", "weight_scale")}
        weight = FloatQuantizationCompressor.decompress(state, scheme)["weight"]
        assert torch.equal(weight.float(), module.parts.dense().to(weight.dtype).float()), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dynamic": False}, r"quantizes inputs of float-quantized weights as \{.*'dynamic': False"),
        ({"strategy": "tensor"}, r"quantizes inputs of .* rounds them to 8 bits by token as they come"),
        (None, r"quantizes inputs of float-quantized weights as None"),
    ],
)
def test_activations_rounded_otherwise_are_refused(
    variant: Path, change: dict[str, Any] | None, message: str
) -> None:
    config = json.loads((variant / "config.json").read_text())["quantization_config"]
    assert FP8 in schemes_of(config, "config.json")[1].values()
    (group,) = [g for g in config["config_groups"].values() if g["format"] == "float-quantized"]
    group["input_activations"] = None if change is None else group["input_activations"] | change
    with pytest.raises(CheckpointError, match=message):
        schemes_of(config, "config.json")


def test_other_linears_in_fp8_are_refused(variant: Path) -> None:
    config = json.loads((variant / "config.json").read_text())["quantization_config"]
    (group,) = [g for g in config["config_groups"].values() if g["format"] == "float-quantized"]
    damaged = {
        **config,
        "format": "float-quantized",
        "config_groups": {"group_0": {**group, "targets": ["Linear"]}},
    }
    with pytest.raises(CheckpointError, match=r"config\.json: all linears are float-quantized, this version"):
        schemes_of(damaged, "config.json")
    group["targets"].append("language_model.model.layers.0.mlp.down_proj")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down_proj is float-quantized, this version"):
        schemes_of(config, "config.json")


def test_outputs_or_weights_rounded_otherwise_are_refused(variant: Path) -> None:
    config = json.loads((variant / "config.json").read_text())["quantization_config"]
    (group,) = [g for g in config["config_groups"].values() if g["format"] == "float-quantized"]
    group["output_activations"] = group["input_activations"]
    with pytest.raises(CheckpointError, match="activations are quantized, this version runs weights only"):
        schemes_of(config, "config.json")
    group["output_activations"] = None
    group["weights"]["symmetric"] = False
    with pytest.raises(CheckpointError, match=r"\(num_bits, symmetric\) of \(8, False\), wanted \(8, True\)"):
        schemes_of(config, "config.json")


def test_nvfp4_may_stand_beside_fp8(tiny_checkpoint: Path, context: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "floats"\n[format]\ntype = "nvfp4"\n[gen]\ntype = "fp8"\n')
    done = job.run({"checkpoint": str(tiny_checkpoint), "recipe": str(recipe), "device": "cpu"}, context)
    pipeline = load_model(Path(done["path"]), "cpu", torch.float32)
    assert enforcement(pipeline).scheme == "nvfp4 + fp8"
    assert sorted(fp8_linears(pipeline)) == sorted(GEN)
    assert verify(Path(done["path"])).problems == []


def _narrow(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"].bfloat16()


def _cut(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"][:-1].clone()


def _plain(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float()


def _unscaled(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[f"{name}.weight_scale"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_narrow, r"gate_proj\.weight_scale is stored as BF16, wanted torch\.float32"),
        (_cut, r"gate_proj\.weight_scale has shape \[\d+, 1\], wanted \[\d+, 1\] for a linear"),
        (_plain, r"gate_proj\.weight is stored as F32, wanted torch\.float8_e4m3fn"),
        (_unscaled, r"gate_proj\.weight_scale"),
    ],
)
def test_damaged_tensors_are_named(
    variant: Path,
    damage: Callable[[dict[str, torch.Tensor], str], None],
    message: str,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(variant, tmp_path / "damaged")
    name = "language_model.model.layers.1.mlp_moe_gen.gate_proj"
    (shard,) = folder.glob("*.safetensors")
    tensors = load_file(shard)
    damage(tensors, name)
    save_file(tensors, shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(tensors, shard.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if damage is _cut:
        # The codes of a linear, unlike packed ones, have its shape.
        assert verify(folder).problems
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", torch.float32)


def test_a_width_for_the_generation_expert_beside_its_own_format_is_refused(
    tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\n[format]\nbits = 4\ngroup = 32\nsymmetric = true\n[gen]\ntype = "fp8"\n'
        '[widths]\n"layers.*.gen.down" = 5\n'
    )
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(recipe), "device": "cpu"}
    with pytest.raises(UsageError, match=r'widths\."layers\.\*\.gen\.down" matches no group'):
        job.run(spec, context)
