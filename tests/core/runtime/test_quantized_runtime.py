from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import CheckpointError, UsageError
from core.lance.generation import teacher_forced
from core.lance.structure import lance_structure
from core.quantization.integer import quantize
from core.quantization.scheme import Scheme
from core.runtime import enforcement, load_model, pick_device, pick_dtype
from core.runtime.linear import QuantizedLinear

NAME = "language_model.model.layers.1.mlp_moe_gen.down_proj"


@pytest.fixture(scope="module")
def variant(tiny_world: Any) -> Path:
    return Path(tiny_world.variants["int4-awq"]["path"])


def copy_of(variant: Path, tmp_path: Path) -> Path:
    shutil.copytree(variant, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder: Path, edit: Any) -> None:
    shard = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    edit(tensors)
    save_file(tensors, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard.name)}))


def logits(pipeline: Any) -> torch.Tensor:
    image = Image.linear_gradient("L").convert("RGB")
    return teacher_forced(pipeline, [image], "What is it?", "Look.", [5, 9, 30, 7], "image_256res")


def test_a_variant_runs_quantized_and_says_so(variant: Path) -> None:
    pipeline = load_model(variant, "cpu", torch.float32)
    found = enforcement(pipeline)
    assert (found.swapped, found.targets, found.scheme) == (42, 42, "int4 asym g32")
    assert found.bytes_held == found.bytes_stored > 0
    assert found.kernel_path == "torch-reference:cpu:held"
    assert sorted(pipeline.report.swapped) == sorted(lance_structure(3).target_linears())
    assert json.dumps(found.to_json())


def test_a_plain_checkpoint_says_bf16(tiny_checkpoint: Path) -> None:
    found = enforcement(load_model(tiny_checkpoint, "cpu", torch.float32))
    assert (found.swapped, found.scheme, found.bytes_held) == (0, "bf16", 0)


def test_held_and_unpacked_weights_give_the_same_answers(variant: Path) -> None:
    pipeline = load_model(variant, "cpu", torch.float32)
    held = logits(pipeline)
    for module in pipeline.model.modules():
        if isinstance(module, QuantizedLinear):
            module.held = None
    assert torch.equal(held, logits(pipeline))
    assert enforcement(pipeline).kernel_path == "torch-reference:cpu"


def test_weights_too_large_to_hold_run_in_torchs_four_bit_product(
    variant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load_model(variant, "cpu", torch.bfloat16)
    monkeypatch.setattr("core.runtime.loading.HOLD_LIMIT", 0)
    packed = load_model(variant, "cpu", torch.bfloat16)
    found = enforcement(packed)
    assert found.kernel_path == "torch-int4:cpu" and found.bytes_held == found.bytes_stored
    ours, theirs = (logits(pipeline)[:, :1022].float() for pipeline in (packed, held))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03
    assert enforcement(load_model(variant, "cpu", torch.float32)).kernel_path == "torch-reference:cpu"


def test_the_runtime_equals_the_model_with_the_dequantized_weights(
    variant: Path, tiny_checkpoint: Path
) -> None:
    """Folded norms and all: our variant is what any reader of the files would compute."""
    pipeline, plain = (
        load_model(variant, "cpu", torch.float32),
        load_model(tiny_checkpoint, "cpu", torch.float32),
    )
    tensors = load_file(variant / "model-00001-of-00001.safetensors")
    for name, parameter in plain.model.named_parameters():
        if name in tensors:
            parameter.data = tensors[name].float()
        else:
            module = pipeline.model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(module, QuantizedLinear)
            parameter.data = module.weight().float()
    assert torch.allclose(logits(pipeline)[:, :1022], logits(plain)[:, :1022], atol=1e-5)


def test_quantization_changes_the_logits_a_little(variant: Path, tiny_pipeline: Any) -> None:
    exact, rounded = (
        logits(tiny_pipeline)[:, :1022],
        logits(load_model(variant, "cpu", torch.float32))[:, :1022],
    )
    assert 1e-4 < float((exact - rounded).norm() / exact.norm()) < 0.5


def test_casting_a_module_leaves_its_stored_scales(variant: Path) -> None:
    quantized = quantize(torch.randn(16, 64), Scheme(4, 32, True))
    from kernels.packing import pack

    module = QuantizedLinear(quantized.scheme, pack(quantized.codes, 4), quantized.scale, None, None)
    module.hold(torch.float32)
    module.to(torch.float64)
    assert module.weight_scale.dtype == torch.bfloat16
    assert torch.equal(module.weight(), quantized.dequantize())
    assert module(torch.ones(1, 64, dtype=torch.float64)).dtype == torch.float64
    assert "int4 sym g32" in repr(module)


@pytest.mark.parametrize(
    ("scheme", "why"),
    [(Scheme(4, 64, True), "written for NVIDIA GPUs, not for meta"), (Scheme(5, 64, True), "not for meta")],
)
def test_a_device_without_kernels_is_warned_of_once(
    scheme: Scheme, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.linear._warned", set())
    packed = torch.empty(16, 2 * scheme.bits, dtype=torch.int32, device="meta")
    module = QuantizedLinear(scheme, packed, torch.empty(16, 1, device="meta").bfloat16(), None, None)
    with pytest.warns(RuntimeWarning, match=f"runs on the slow reference path: no kernel, .*{why}"):
        module.lay_out()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.lay_out()
    assert module.path == "torch-reference:meta" and module.laid_out is None


def test_a_linear_left_unswapped_is_an_error(variant: Path) -> None:
    pipeline = load_model(variant, "cpu", torch.float32)
    parent = pipeline.model.get_submodule(NAME.rpartition(".")[0])
    parent.down_proj = nn.Linear(128, 64, bias=False)
    with pytest.raises(CheckpointError, match=rf"{NAME} is still a plain linear: 41 of 42"):
        enforcement(pipeline)


def test_a_weight_kept_in_another_form_is_an_error(variant: Path) -> None:
    pipeline = load_model(variant, "cpu", torch.float32)
    module = pipeline.model.get_submodule(NAME)
    module.weight_packed = module.weight_packed.to(torch.int64)
    with pytest.raises(CheckpointError, match=rf"{NAME} holds \d+ bytes, its files \d+"):
        enforcement(pipeline)


def test_a_plain_weight_among_quantized_ones_is_an_error(variant: Path, tmp_path: Path) -> None:
    folder = copy_of(variant, tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"):
            del tensors[f"{NAME}.{key}"]
        tensors[f"{NAME}.weight"] = torch.zeros(64, 128, dtype=torch.bfloat16)

    change(folder, edit)
    with pytest.raises(CheckpointError, match=rf"{NAME} is still a plain linear"):
        load_model(folder, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "weight_scale",
            torch.ones(64, 2, dtype=torch.bfloat16),
            r"weight_scale has shape \[64, 2\], wanted \[64, 4\]",
        ),
        ("weight_shape", torch.tensor([64, 64]), r"weight_shape is \[64, 64\], wanted \[64, 128\]"),
        ("weight_scale", torch.full((64, 4), float("nan"), dtype=torch.bfloat16), r"weight_scale .* NaN"),
        ("weight_zero_point", None, r"weight_zero_point is missing"),
    ],
)
def test_damaged_quantized_tensors_are_named(
    variant: Path, tmp_path: Path, key: str, value: torch.Tensor | None, message: str
) -> None:
    folder = copy_of(variant, tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{NAME}.{key}"]
        if value is not None:
            tensors[f"{NAME}.{key}"] = value

    change(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", torch.float32)


def test_devices_and_dtypes_by_name() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert (pick_dtype("auto", cpu), pick_dtype("bfloat16", cpu)) == (torch.float32, torch.bfloat16)
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UsageError, match="device 'gpu' cannot be used here"):
        pick_device("gpu")
    with pytest.raises(UsageError, match="dtype 'float8'"):
        pick_dtype("float8", cpu)
