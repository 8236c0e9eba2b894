"""Packing with the real tokenizer and the real presets, against all of upstream's example samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.lance import prompts
from core.lance.loading import load_tokenizer
from core.lance.packing import CAPTION, pack


@pytest.fixture(scope="module")
def samples(shared_lance: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared_lance / "golden/templates/templates.json").read_text())
    return content


def _prompt(sample: dict[str, Any]) -> prompts.Prompt:
    """The prompt of a recorded sample, its grids taken from the record."""
    task, data = sample["task"], sample["sample"]
    grids = [(t, h // 2, w // 2) for t, h, w in sample["grid_thw"]]
    if task.startswith("x2t"):
        instruction, question, _ = data["interleave_array"][-1]
        return prompts.question(grids, question, instruction)
    text = data if isinstance(data, str) else data["interleave_array"][0]
    if task in ("t2i", "t2v", "i2v"):
        return prompts.generation(text, grids[-1])
    return prompts.edit(grids[0], grids[1], text, "image" if task == "image_edit" else "video")


def test_every_example_packs_as_upstream_does(samples: dict[str, Any], shared_lance: Path) -> None:
    tokenizer = load_tokenizer(shared_lance / "tokenizer")
    positions = load_file(shared_lance / "golden/templates/position_ids.safetensors")
    for name, sample in samples.items():
        packed = pack(_prompt(sample), tokenizer)
        wanted = [token for token, count in sample["ids_rle"] for _ in range(count)]
        length = len(packed.ids)
        assert packed.ids.tolist() == wanted[:length], name
        if not name.startswith("x2t"):
            assert length == len(wanted), name
        modality = [tag for tag, count in sample["modality_rle"] for _ in range(count)]
        assert packed.modality().tolist() == modality[:length], name
        recorded = positions[f"{name}.position_ids"].long()
        assert torch.equal(packed.positions, recorded[:, :length]), name
        if any(split.modality == CAPTION for split in packed.splits):
            uncond = positions[f"{name}.uncond_position_ids"].long()
            assert torch.equal(packed.uncond_positions, uncond), name
