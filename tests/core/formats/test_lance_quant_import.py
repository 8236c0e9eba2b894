"""Files of lance-quant become variants whose weights are, to the bit, those that lance-quant computes with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError, UsageError, WorkbenchError
from core.lance.structure import lance_structure
from core.quantization.importing import import_variant
from core.runtime import enforcement, load_model
from core.runtime.linear import QuantizedLinear

GROUP = 32
NAME = "language_model.model.layers.1.mlp_moe_gen.down_proj"


def write_files(folder: Path, checkpoint: Path, bits: int) -> dict[str, torch.Tensor]:
    """The tiny model as lance-quant writes it; returns what its runtime computes with, by linear."""
    tensors = load_file(checkpoint / "model.safetensors")
    stored = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    meta: dict[str, Any] = {}
    runs = {}
    for name in lance_structure(3).target_linears():
        weight = stored.pop(f"{name}.weight").float()
        groups = weight.unflatten(-1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
        zero = (-low / scale).round().clamp(0, 2**bits - 1)
        codes = (groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, 2**bits - 1)
        flat = codes.flatten(-2).to(torch.uint8)
        stored[f"{name}.qweight"] = flat[:, 0::2] | flat[:, 1::2] << 4 if bits == 4 else flat
        stored[f"{name}.scales"] = scale.bfloat16()
        stored[f"{name}.zeros"] = zero.to(torch.uint8)
        steps = codes.bfloat16() - zero.bfloat16().unsqueeze(-1)
        runs[name] = (steps * scale.bfloat16().unsqueeze(-1)).flatten(-2)
        meta[f"{name}.weight"] = {
            "shape": list(weight.shape), "n_bit": bits, "group_size": GROUP, "scheme": "asym_int4_grouped_awq"
        }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(stored, folder / "awq_state_dict.safetensors")
    (folder / "awq_meta.json").write_text(json.dumps({"n_bit": bits, "per_weight": meta}))
    return runs


@pytest.mark.parametrize("bits", [4, 5])
def test_an_imported_variant_runs_the_same_weights(
    bits: int, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    wanted = write_files(tmp_path / "theirs", tiny_checkpoint, bits)
    done = import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
    assert done["variant"] == f"lance-tiny_lance-quant-int{bits}-g32"
    # Five-bit codes took a byte each; here they are packed.
    assert done["bits_per_weight"] < bits + 0.7
    row = context.store.checkpoint(done["variant"])
    assert (row["kind"], row["parent"], row["recipe"]) == ("variant", "lance-tiny", "lance-quant")
    pipeline = load_model(Path(done["path"]), "cpu", torch.float32)
    assert enforcement(pipeline).swapped == 42
    for name, weight in wanted.items():
        module = pipeline.model.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert torch.equal(module.weight(), weight), name


def edit(change: Callable[[dict[str, torch.Tensor]], None], folder: Path) -> None:
    path = folder / "awq_state_dict.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}.zeros"), r"down_proj\.zeros is missing"),
        (
            lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"][:, :1].clone()}),
            r"do not fit int4 asym g32",
        ),
        (lambda t: t.update({f"{NAME}.zeros": t[f"{NAME}.zeros"] + 40}), r"holds a code of \d+, wanted int4"),
        (lambda t: t.update(extra=torch.zeros(1)), r"extra is no tensor of a Lance"),
        (lambda t: t.pop("language_model.lm_head.weight"), r"lm_head\.weight is missing"),
        (
            lambda t: t.update({f"{NAME}.qweight": t[f"{NAME}.qweight"][:8].clone()}),
            r"qweight has shape \[8, 64\], wanted \[64, 64\]",
        ),
    ],
)
def test_damage_is_named_and_leaves_nothing(
    change: Any, message: str, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    write_files(tmp_path / "theirs", tiny_checkpoint, 4)
    edit(change, tmp_path / "theirs")
    with pytest.raises(WorkbenchError, match=message):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert context.store.checkpoints("variant") == []


def test_other_folders_and_mixed_formats_are_refused(
    tiny_checkpoint: Path, tiny_world: Any, context: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no variant of lance-quant: it has no awq_meta\.json"):
        import_variant(context.store, tmp_path, tiny_checkpoint, None)
    write_files(tmp_path / "theirs", tiny_checkpoint, 4)
    variant = Path(tiny_world.variants["int4-minmax"]["path"])
    with pytest.raises(UsageError, match="is a variant; give the checkpoint"):
        import_variant(context.store, tmp_path / "theirs", variant, None)
    path = tmp_path / "theirs" / "awq_meta.json"
    meta = json.loads(path.read_text())
    meta["per_weight"][f"{NAME}.weight"]["group_size"] = 64
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"bits and groups are \[\(4, 32\), \(4, 64\)\]"):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
    del meta["per_weight"][f"{NAME}.weight"]
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=rf"{NAME} is not quantized"):
        import_variant(context.store, tmp_path / "theirs", tiny_checkpoint, None)
