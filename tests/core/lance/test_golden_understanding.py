"""x2t_image against upstream's own numbers, layer by layer, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.lance import prompts
from core.lance.generation import Understanding, decode_text
from core.lance.packing import pack
from core.lance.preprocess import read_image

TASKS = ["x2t_image_1", "x2t_image_2_eos", "x2t_image_3_two_images"]


class Case:
    """One recorded run: its tensors and the question it asked."""

    def __init__(self, golden: Path, name: str) -> None:
        folder = golden / "tasks" / name
        self.tensors = load_file(folder / "tensors.safetensors")
        self.meta = json.loads((folder / "meta.json").read_text())
        *images, (self.instruction, self.question, self.reference) = self.meta["sample"]["interleave_array"]
        self.images = [read_image(golden / image) for image in images]
        self.grids = [tuple(grid) for grid in self.tensors["data.vit_video_grid_thw"].tolist()]
        self.merged = [(t, h // 2, w // 2) for t, h, w in self.grids]


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest, golden: Path) -> Case:
    return Case(golden, request.param)


def test_packing_is_upstreams(case: Case, tiny_pipeline: Any) -> None:
    packed = pack(prompts.question(case.merged, case.question, case.instruction), tiny_pipeline.tokenizer)
    length = len(packed.ids)
    assert length == int(case.tensors["data.ce_loss_indexes"][0]) + 1
    assert packed.ids.tolist() == case.tensors["data.packed_text_ids"][:length].tolist()
    assert [split.length for split in packed.splits[:-1]] == case.meta["split_lens"][:-1]
    assert [split.mode for split in packed.splits] == case.meta["attn_modes"]
    assert packed.modality().tolist() == case.tensors["data.sample_modality"][:length].tolist()


def test_vision_features(case: Case, tiny_pipeline: Any) -> None:
    features = tiny_pipeline.model.vit_model.features(case.tensors["data.vit_patches"], case.grids)
    assert (features - case.tensors["vit.features"]).abs().max() < 2e-5


@torch.inference_mode()
def test_every_call_of_the_decoder(case: Case, tiny_pipeline: Any) -> None:
    """Positions, hidden states after every split, and logits of every greedy step."""
    recorded = case.tensors
    understanding = feed(case, tiny_pipeline)
    start = 0
    for index, call in enumerate(case.meta["llm_calls_recorded"][: len(understanding.packed.splits)]):
        stop = start + call["n_query"]
        wanted = recorded[f"call{index}.position_ids"][:, 0]
        assert torch.equal(understanding.packed.positions[:, start:stop], wanted)
        start = stop
    assert start == understanding.last
    last = len(understanding.packed.splits) - 1
    assert (understanding.hidden - recorded[f"call{last}.final_hidden"]).abs().max() < 2e-5
    tokens, logits = zip(*understanding.steps(case.meta["max_length"]), strict=True)
    assert list(tokens) == recorded["out.tokens"].tolist()
    wanted = recorded["out.logits"].clone()
    wanted[:, case.meta["len_tokenizer"] :] = float("-inf")
    finite = wanted.isfinite()
    got = torch.stack(list(logits))
    assert torch.equal(got.isfinite(), finite)
    assert (got[finite] - wanted[finite]).abs().max() < 2e-4
    text = case.meta["text"].replace(prompts.IM_END, "").strip()
    assert decode_text(tiny_pipeline, tokens) == text


@torch.inference_mode()
def test_teacher_forcing_sees_what_decoding_saw(case: Case, tiny_pipeline: Any) -> None:
    tokens = case.tensors["out.tokens"].tolist()
    logits = feed(case, tiny_pipeline).logits(tokens)
    keep = case.meta["len_tokenizer"]
    assert (logits[:, :keep] - case.tensors["out.logits"][:, :keep]).abs().max() < 2e-4


@torch.inference_mode()
def feed(case: Case, pipeline: Any) -> Understanding:
    """Read the recorded patches: the fixtures use resolutions that are no public preset."""
    features = pipeline.model.vit_model.features(case.tensors["data.vit_patches"], case.grids)
    parts = features.split([t * h * w for t, h, w in case.merged])
    return Understanding(pipeline, parts, case.merged, case.question, case.instruction)
