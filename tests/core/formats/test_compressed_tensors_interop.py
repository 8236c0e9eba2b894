"""compressed-tensors' own code reads back, to the bit, the weights that our runtime computes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import quantization_config, schemes_of, tensor_keys, to_tensors
from core.lance.structure import UNTOUCHED, lance_structure
from core.quantization.integer import quantize
from core.quantization.rounding import Rounding
from core.quantization.scheme import CHANNEL, NVFP4, Scheme
from kernels.reference import dequantize_packed

theirs = pytest.importorskip("compressed_tensors.quantization", reason="compressed-tensors is not installed")


def decompress(tensors: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    """The package's own decompression of one linear, by local names."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    return PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]


def their_scheme(config: dict[str, Any]) -> Any:
    return theirs.QuantizationConfig.model_validate(config).config_groups["group_0"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, CHANNEL])
@pytest.mark.parametrize(
    ("bits", "rows", "columns"),
    [
        (2, 9, 128),
        (3, 33, 384),
        (4, 40, 256),
        (4, 7, 128),
        (5, 12, 256),
        (6, 5, 384),
        (7, 19, 128),
        (8, 16, 128),
    ],
)
def test_weights_decompress_to_ours_bit_for_bit(
    bits: int, rows: int, columns: int, group: int, symmetric: bool
) -> None:
    generator = torch.Generator().manual_seed(bits * rows)
    weight = torch.randn(rows, columns, generator=generator) * 0.03
    scheme = Scheme(bits, group, symmetric)
    weight[0, : scheme.width(columns)] = weight[0, : scheme.width(columns)].abs() + 0.1
    weight[1] = 0
    ours = quantize(weight, scheme)
    tensors = to_tensors("layer", ours)
    assert sorted(tensors) == sorted(tensor_keys("layer", scheme))
    local = {key.removeprefix("layer."): tensor for key, tensor in tensors.items()}
    read = decompress(local, their_scheme(quantization_config(scheme, [])))
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, ours.dequantize())
    runs = dequantize_packed(
        local["weight_packed"], local["weight_scale"], local.get("weight_zero_point"), bits, columns
    )
    assert torch.equal(read, runs)


@pytest.mark.parametrize("symmetric", [False, True])
def test_their_packing_of_our_codes_is_ours(symmetric: bool) -> None:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    generator = torch.Generator().manual_seed(3)
    scheme = Scheme(4, 64, symmetric)
    ours = quantize(torch.randn(24, 128, generator=generator), scheme)
    state = {"weight": ours.dequantize(), "weight_scale": ours.scale}
    if ours.zero is not None:
        state["weight_zero_point"] = ours.zero
    packed = PackedQuantizationCompressor.compress(state, their_scheme(quantization_config(scheme, [])))
    for key, tensor in to_tensors("layer", ours).items():
        assert torch.equal(packed[key.removeprefix("layer.")], tensor), key


def decompress_nvfp4(tensors: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    return NVFP4PackedCompressor.decompress(tensors, scheme)["weight"]


@pytest.mark.parametrize("size", [1e-6, 0.02, 30.0])
@pytest.mark.parametrize("searched", [False, True])
def test_nvfp4_weights_decompress_to_ours_bit_for_bit(size: float, searched: bool) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(5)) * size
    weight[0, :16] = 0
    ours = Rounding(NVFP4, searched).grid(weight, torch.ones(128)).encode(weight)
    tensors = to_tensors("layer", ours)
    assert sorted(tensors) == sorted(tensor_keys("layer", NVFP4))
    local = {key.removeprefix("layer."): tensor for key, tensor in tensors.items()}
    read = decompress_nvfp4(local, their_scheme(quantization_config(NVFP4, [])))
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, ours.dequantize())


def test_the_package_takes_an_nvfp4_config_for_that_layout() -> None:
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    scheme = their_scheme(quantization_config(NVFP4, []))
    assert NVFP4PackedCompressor.can_compress(torch.nn.Linear, scheme)
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(6))
    ours = Rounding(NVFP4, True).grid(weight, torch.ones(128)).encode(weight)
    tensors = {key.removeprefix("layer."): tensor for key, tensor in to_tensors("layer", ours).items()}
    state = {
        "weight": ours.dequantize().float(),
        "weight_scale": ours.scale.float(),  # type: ignore[union-attr]
        "weight_global_scale": tensors["weight_global_scale"],
    }
    packed = NVFP4PackedCompressor.compress(state, scheme)
    assert torch.equal(packed["weight_scale"].view(torch.uint8), tensors["weight_scale"].view(torch.uint8))
    # A zero's sign is free: compare what the codes are worth.
    for nibble in (lambda t: t & 15, lambda t: t >> 4):
        theirs_now, mine = nibble(packed["weight_packed"]), nibble(tensors["weight_packed"])
        assert bool(((theirs_now == mine) | ((theirs_now & 7 == 0) & (mine == 0))).all())


def test_a_whole_variant_is_read_by_the_package(tiny_world: Any) -> None:
    for result in tiny_world.variants.values():
        folder = Path(result["path"])
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        scheme = their_scheme(config)
        source = TensorSource.open(folder)
        for name in lance_structure(3).target_linears():
            local = {
                key: source.get(f"{name}.{key}")
                for key in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
            }
            read = decompress(local, scheme)
            columns = int(local["weight_shape"][1])
            runs = dequantize_packed(
                local["weight_packed"], local["weight_scale"], local["weight_zero_point"], 4, columns
            )
            assert torch.equal(read, runs), name


def test_the_config_targets_exactly_the_quantized_linears(tiny_world: Any, tiny_pipeline: Any) -> None:
    """By the package's own rule of what a config's targets and ignore list mean."""
    from compressed_tensors.utils import match_named_modules

    config = quantization_config(Scheme(4, 32, False), list(UNTOUCHED))
    targets = config["config_groups"]["group_0"]["targets"]
    matched = [name for name, _ in match_named_modules(tiny_pipeline.model, targets, config["ignore"])]
    assert sorted(matched) == sorted(lance_structure(3).target_linears())


def test_a_head_of_its_own_is_targeted_once(tiny_pipeline: Any) -> None:
    from compressed_tensors.utils import match_named_modules

    head = "language_model.lm_head"
    config = quantization_config(Scheme(4, 32, False), list(UNTOUCHED), {head: Scheme(8, 64, True)})
    found = theirs.QuantizationConfig.model_validate(config).config_groups
    assert found["group_1"].weights.num_bits == 8
    targets = config["config_groups"]["group_1"]["targets"]
    assert [name for name, _ in match_named_modules(tiny_pipeline.model, targets, config["ignore"])] == [head]
    assert head not in config["ignore"] and "vae2llm" in config["ignore"]


def test_a_scheme_survives_its_config_and_other_layouts_are_named() -> None:
    scheme = Scheme(5, 32, True)
    config = quantization_config(scheme, [])
    assert schemes_of(config, "config.json") == (scheme, {})
    rows = Scheme(4, CHANNEL, False)
    assert schemes_of(quantization_config(rows, []), "config.json") == (rows, {})
    assert schemes_of(quantization_config(NVFP4, []), "config.json") == (NVFP4, {})
    with pytest.raises(CheckpointError, match=r"here/config\.json: format is 'int-quantized'"):
        schemes_of(config | {"format": "int-quantized"}, "here/config.json")
    with pytest.raises(CheckpointError, match=r"weights\.type is 'int', this version runs 'float'"):
        schemes_of(config | {"format": "nvfp4-pack-quantized"}, "config.json")
    outer = {name: Scheme(8, 64, True) for name in ("language_model.lm_head", "time_embedder.mlp.2")}
    assert schemes_of(quantization_config(scheme, [*outer, "vae2llm"], outer), "config.json") == (
        scheme,
        outer,
    )
    with pytest.raises(CheckpointError, match=r"quantizes mlp in a way of its own"):
        schemes_of(quantization_config(scheme, [], {"mlp": scheme}), "config.json")
    with pytest.raises(CheckpointError, match="damaged"):
        schemes_of({"quant_method": "compressed-tensors"}, "config.json")
