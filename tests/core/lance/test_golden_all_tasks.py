"""The decoder path of the five remaining tasks against upstream's numbers: clips, edits, a fixed first frame.

Their fixtures are too large to ship; the tests read them from upstream's material beside a development checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.lance import prompts
from core.lance.generation import Drawing, Understanding
from core.lance.packing import Packed, pack, visibility
from core.lance.sampler import Sampling, sample


class Case:
    """One recorded run."""

    def __init__(self, shared: Path, name: str) -> None:
        folder = shared / "golden" / "tasks" / name
        self.tensors = load_file(folder / "tensors.safetensors")
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.grids = [(t, h // 2, w // 2) for t, h, w in self.tensors["data.video_grid_thw"][0].tolist()]

    def prompt(self) -> prompts.Prompt:
        task = self.meta["task"]
        if task == "t2v":
            return prompts.generation(self.meta["data"]["000000.mp4"], self.grids[-1])
        text = self.meta["data"]["0001"]["interleave_array"][0]
        if task == "i2v":
            return prompts.generation(text, self.grids[-1])
        return prompts.edit(self.grids[0], self.grids[1], text, "image" if task == "image_edit" else "video")

    def reader(self, pipeline: Any, packed: Packed) -> tuple[Drawing, torch.Tensor]:
        """The drawing and its starting point, from the recorded noise, features and latents."""
        tensors = self.tensors
        tokens = packed.target.length - 2
        noise = tensors["noise"][-tokens:].clone()
        if self.meta["task"] == "i2v":
            first = tensors["vae.cond_latent_frame0"].flatten(0, 2)
            fixed = torch.arange(tokens) < len(first)
            noise[fixed] = first
            return Drawing(pipeline, packed, fixed=fixed), noise
        if self.meta["task"] == "t2v":
            return Drawing(pipeline, packed), noise
        source = tensors["vae.cond_latent"].flatten(0, 2)
        return Drawing(pipeline, packed, [tensors["vit.features"]], [source]), noise


@torch.inference_mode()
@pytest.mark.parametrize("name", ["t2v_1", "i2v_1", "image_edit_1", "video_edit_1"])
def test_generation(name: str, shared_lance: Path, tiny_pipeline: Any) -> None:
    case = Case(shared_lance, name)
    packed = pack(case.prompt(), tiny_pipeline.tokenizer)
    assert packed.ids.tolist() == case.tensors["data.packed_text_ids"].tolist()
    assert packed.modality().tolist() == case.tensors["data.sample_modality"].tolist()
    assert torch.equal(visibility(packed.splits), case.tensors["uncached.attention_mask_uint8"].bool())
    reader, noise = case.reader(tiny_pipeline, packed)
    for scale, wanted in ((4.0, "out.latents"), (1.0, "extra.cfg1.latents")):
        sampling = Sampling(num_steps=case.meta["num_timesteps"], cfg_text_scale=scale)
        final = sample(noise, reader.velocities, sampling, fixed=reader.fixed)
        assert (final.view_as(case.tensors[wanted]) - case.tensors[wanted]).abs().max() < 1e-3, wanted


@torch.inference_mode()
def test_video_question(shared_lance: Path, tiny_pipeline: Any) -> None:
    case = Case(shared_lance, "x2t_video_1")
    instruction, question, _ = case.meta["sample"]["interleave_array"][1]
    features = tiny_pipeline.model.vit_model.features(
        case.tensors["data.vit_patches"], [tuple(g) for g in case.tensors["data.vit_video_grid_thw"].tolist()]
    )
    assert (features - case.tensors["vit.features"]).abs().max() < 2e-5
    understanding = Understanding(tiny_pipeline, [features], case.grids, question, instruction)
    tokens = [token for token, _ in understanding.steps(case.meta["max_length"])]
    assert tokens == case.tensors["out.tokens"].tolist()
