"""Checkpoints that do not fit are refused before they are loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.checkpoints.describe import describe
from core.errors import WorkbenchError
from core.evaluation.single import Asked, Session
from core.quantization.scheme import Scheme
from core.runtime import memory
from core.runtime.linear import QuantizedLinear
from kernels.samples import int4, nvfp4
from kernels.tiles import tile
from kernels.timing import SHAPES


def test_weights_are_counted_as_they_are_loaded(tiny_checkpoint: Path, tiny_pipeline: Any) -> None:
    info = describe(tiny_checkpoint)
    loaded = sum(parameter.nbytes for parameter in tiny_pipeline.model.parameters())
    assert memory.weight_bytes(info, torch.float32) == loaded
    assert memory.weight_bytes(info, torch.bfloat16) == loaded // 2


def test_a_separate_tower_counts_and_the_position_table_does_not(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole = memory.weight_bytes(describe(tiny_checkpoint), torch.bfloat16)
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    folder, vision = tmp_path / "Lance_Split", tmp_path / "Qwen2.5-VL-ViT"
    folder.mkdir()
    vision.mkdir()
    (folder / "llm_config.json").write_text((tiny_checkpoint / "llm_config.json").read_text())
    tower = {n.removeprefix("vit_model."): t for n, t in tensors.items() if n.startswith("vit_model.")}
    save_file(tower, vision / "vit.safetensors")
    rest = {n: t for n, t in tensors.items() if not n.startswith("vit_model.")}
    save_file(rest | {"latent_pos_embed.pos_embed": torch.zeros(4096, 64)}, folder / "model.safetensors")
    assert memory.weight_bytes(describe(folder), torch.bfloat16) == whole


def test_packed_codes_keep_their_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    codes = {"a.weight_packed": torch.zeros(8, 16, dtype=torch.int32), "a.weight_scale": torch.zeros(8, 2)}
    save_file(codes, tmp_path / "model.safetensors")
    (tmp_path / "llm_config.json").write_text("{}")
    assert memory.weight_bytes(describe(tmp_path), torch.bfloat16) == 8 * 16 * 4 + 8 * 2 * 2


def test_what_does_not_fit_is_not_loaded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr("core.evaluation.single.load_model", lambda *_: pytest.fail("loaded"))
    session = Session(str(tiny_checkpoint), None, "cpu", "float32", lambda text: None)
    with pytest.raises(
        WorkbenchError, match=r"lance-tiny: its weights take 0\.0 GB in float32, cpu has .* or another"
    ):
        session.run(Asked("t2i", "a cube", out=Path("a.png"), height=32, width=32))


def test_what_a_run_adds_to_the_weights_is_told_before_loading_too(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights fit; the target of 121 frames does not."""
    info = describe(tiny_checkpoint)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 * memory.weight_bytes(info, torch.float32))
    monkeypatch.setattr("core.evaluation.single.load_model", lambda *_: pytest.fail("loaded"))
    session = Session(str(tiny_checkpoint), None, "cpu", "float32", lambda text: None)
    with pytest.raises(
        WorkbenchError,
        match=r"lance-tiny: this takes about .* of cpu in float32 \(weights .*ask for a smaller",
    ):
        session.run(Asked("t2v", "a cube", out=Path("a.mp4"), height=512, width=512, frames=121))


@pytest.mark.parametrize("kind", ["int4", "nvfp4"])
def test_the_layout_of_the_kernels_adds_little_at_the_released_size(kind: str) -> None:
    """36 layers of two experts, fused as they run: 0.3 GB at most beyond the files."""
    added = 0.0
    for rows, columns in SHAPES.values():
        stored = int4(64, columns, 64, False, 0) if kind == "int4" else nvfp4(64, columns, 0)
        tensors = (stored.packed, stored.scale, getattr(stored, "zero", None))
        laid_out = tile(stored)
        more = laid_out.nbytes - sum(tensor.nbytes for tensor in tensors if tensor is not None)
        added += 72 * (more / 64 * rows + laid_out.tickets.nbytes)
    assert 0 < added < 0.3e9


def test_shared_and_held_weights_are_counted_once_each() -> None:
    module = QuantizedLinear(
        Scheme(4, 32, True), torch.zeros(16, 8, dtype=torch.int32), torch.ones(16, 2), None, None
    )
    model = nn.ModuleList([module, module, nn.Linear(4, 4, bias=False), nn.Linear(9, 9, device="meta")])
    assert memory.held_bytes(model) == 16 * 8 * 4 + 16 * 2 * 4 + 64
    module.hold(torch.float32)
    assert memory.held_bytes(model) == 16 * 8 * 4 + 16 * 2 * 4 + 64 + 16 * 64 * 4


def test_the_machines_memory_is_read() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 1 << 20 < free < math.inf
