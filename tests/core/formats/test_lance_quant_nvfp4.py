"""NVFP4 files of lance-quant become variants with the same codes and E4M3 scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError, UsageError, WorkbenchError
from core.lance.structure import lance_structure
from core.quantization.importing import import_variant
from core.runtime import enforcement, load_model
from core.runtime.linear import QuantizedLinear

BLOCK = 16
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NAME = "language_model.model.layers.1.mlp_moe_gen.down_proj"


def e4m3(byte: int) -> float:
    """The value of a positive E4M3 byte: four bits of exponent, three of mantissa, bias 7."""
    exponent, mantissa = byte >> 3, byte & 7
    return mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


SCALES = np.array([e4m3(byte) for byte in range(0x7F)])


def write_files(folder: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tiny model in lance-quant's NVFP4 layout, worked out in numpy; what its E4M3 scales stand for, by linear."""
    stored = {
        name: t.bfloat16() if t.is_floating_point() else t
        for name, t in load_file(checkpoint / "model.safetensors").items()
    }
    meta: dict[str, Any] = {}
    runs = {}
    for name in lance_structure(3).target_linears():
        weight = stored.pop(f"{name}.weight").double().numpy()
        blocks = weight.reshape(len(weight), -1, BLOCK)
        scale = np.maximum(np.abs(blocks).max(-1), 1e-8) / 6
        # Codes are chosen with the scale as it is; there is no global scale that would keep its E4M3 copy precise.
        steps = np.abs(blocks) / scale[..., None]
        index = np.abs(steps[..., None] - LEVELS).argmin(-1)
        codes = (index + 8 * (blocks < 0)).reshape(weight.shape)
        stored[f"{name}.qweight"] = torch.from_numpy((codes[:, 0::2] + 16 * codes[:, 1::2]).astype(np.uint8))
        bytes_ = np.abs(scale[..., None] - SCALES).argmin(-1)
        stored[f"{name}.scales_fp8"] = torch.from_numpy(bytes_.astype(np.uint8))
        stored[f"{name}.scales_bf16"] = torch.from_numpy(scale).bfloat16()
        signed = np.where(codes >= 8, -1.0, 1.0) * LEVELS[codes % 8]
        runs[name] = torch.from_numpy(
            (signed.reshape(blocks.shape) * SCALES[bytes_][..., None]).reshape(weight.shape)
        )
        meta[f"{name}.weight"] = {"shape": list(weight.shape), "block_size": BLOCK, "scheme": "nvfp4_awq"}
    folder.mkdir(parents=True)
    save_file(stored, folder / "nvfp4_state_dict.safetensors")
    text = json.dumps({"block_size": BLOCK, "scheme": "nvfp4_e2m1_block_fp8scale", "per_weight": meta})
    (folder / "nvfp4_meta.json").write_text(text)
    return runs


def test_an_imported_nvfp4_variant_runs_the_same_weights(
    tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    wanted = write_files(tmp_path / "theirs", tiny_checkpoint)
    done = import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
    assert done["variant"] == "lance-tiny_lance-quant-nvfp4-g16"
    # Theirs keeps each scale twice: 5.5 bits.
    assert done["bits_per_weight"] == pytest.approx(4.5, abs=0.02)
    pipeline = load_model(Path(done["path"]), "cpu", torch.float32)
    assert enforcement(pipeline).swapped == 42
    theirs = load_file(tmp_path / "theirs" / "nvfp4_state_dict.safetensors")
    for name, weight in wanted.items():
        module = pipeline.model.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert torch.equal(module.weight().double(), weight), name
        assert torch.equal(module.weight_packed, theirs[f"{name}.qweight"])
        assert torch.equal(module.weight_scale.view(torch.uint8), theirs[f"{name}.scales_fp8"])
    scales = [
        (theirs[f"{name}.scales_bf16"].double().numpy(), theirs[f"{name}.scales_fp8"]) for name in wanted
    ]
    off = [np.mean((SCALES[rounded.numpy()] / scale - 1) ** 2) for scale, rounded in scales]
    assert done["scale_error"] == pytest.approx(np.mean(off) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scales_fp8", None, r"down_proj\.scales_fp8 is missing"),
        ("scales_fp8", lambda t: t | 0x7F, r"scales_fp8 holds the byte 0x7f, which is no number"),
        ("scales_fp8", lambda t: t + 0x80, r"holds the byte 0x[89a-f].*which is negative"),
        ("scales_fp8", lambda t: t.bfloat16(), r"scales_fp8 \[64, 8\] bfloat16.*do not fit nvfp4"),
        ("scales_bf16", lambda t: t[:, :1].clone(), r"scales_bf16 \[64, 1\] bfloat16 do not fit nvfp4"),
        ("qweight", lambda t: t[:8].clone(), r"qweight has shape \[8, 64\], wanted \[64, 64\]"),
    ],
)
def test_a_damaged_nvfp4_file_is_named_and_leaves_nothing(
    part: str, change: Any, message: str, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    write_files(tmp_path / "theirs", tiny_checkpoint)
    path = tmp_path / "theirs" / "nvfp4_state_dict.safetensors"
    tensors = load_file(path)
    found = tensors.pop(f"{NAME}.{part}")
    if change is not None:
        tensors[f"{NAME}.{part}"] = change(found)
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(WorkbenchError, match=message):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert context.store.checkpoints("variant") == []


def test_blocks_of_another_size_and_half_a_folder_are_refused(
    tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    write_files(tmp_path / "theirs", tiny_checkpoint)
    path = tmp_path / "theirs" / "nvfp4_meta.json"
    meta = json.loads(path.read_text())
    for entry in meta["per_weight"].values():
        entry["block_size"] = 32
    path.write_text(json.dumps(meta))
    with pytest.raises(
        CheckpointError, match=r"bits and groups are \[\(4, 32\)\], wanted 4 bits in blocks of 16"
    ):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
    (tmp_path / "theirs" / "nvfp4_state_dict.safetensors").unlink()
    with pytest.raises(UsageError, match=r"it has no nvfp4_state_dict\.safetensors"):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
