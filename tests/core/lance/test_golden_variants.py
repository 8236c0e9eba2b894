"""The second tiny model, which has the released rotary geometry, and runs in bfloat16 and with rounded tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_runs import Run

from core.lance import tasks
from core.lance.loading import Pipeline, load_lance
from core.lance.sampler import Sampling

ROUNDED = "variant.invfreq_bf16"


@pytest.fixture(scope="module")
def wide_heads(shared_lance: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """hd128: heads of 128 channels, their frequencies split 16, 24, 24 over time, rows and columns."""
    golden, folder = shared_lance / "golden", tmp_path_factory.mktemp("hd128")
    model = folder / "Lance_Tiny"
    shutil.copytree(golden / "hd128" / "tokenizer_tiny", model)
    shutil.copy(golden / "hd128" / "llm_config.json", model)
    shutil.copy(golden / "hd128" / "weights" / "model.safetensors", model)
    shutil.copy(golden / "weights" / "vae.safetensors", folder / "Wan2.2_VAE.safetensors")
    (folder / "Qwen2.5-VL-ViT").mkdir()
    shutil.copy(golden / "hd128" / "vit_config.json", folder / "Qwen2.5-VL-ViT" / "config.json")
    return load_lance(model, "cpu", torch.float32)


@contextmanager
def rounding(pipeline: Any) -> Iterator[None]:
    """Upstream's bfloat16 rounding of rotary frequencies and latent positions, in float32 arithmetic."""
    pipeline.model.rounded = True
    pipeline.model.reset_buffers()
    try:
        yield
    finally:
        pipeline.model.rounded = False
        pipeline.model.reset_buffers()


def latents(run: Run, pipeline: Any, sampling: Sampling | None = None) -> torch.Tensor:
    scene = run.scene(pipeline)
    return tasks.generate(pipeline, scene, sampling or run.sampling).latents


@pytest.mark.parametrize("name", ["t2i_1", "t2v_1", "image_edit_1"])
def test_generations_with_the_released_rotary_geometry(
    name: str, shared_lance: Path, wide_heads: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shared_lance / "golden", name, monkeypatch, "hd128")
    recorded = run.tensors
    made = tasks.generate(wide_heads, run.scene(wide_heads), run.sampling)
    assert (made.latents - recorded["out.latents"]).abs().max() < 1e-3
    difference = (made.frames.int() - recorded["out.uint8_thwc"].int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
    without = Sampling(num_steps=run.sampling.num_steps, cfg_text_scale=1.0)
    wanted = recorded["extra.cfg1.latents"]
    assert (latents(run, wide_heads, without) - wanted).abs().max() < 1e-3
    with rounding(wide_heads):
        assert (latents(run, wide_heads) - recorded[f"{ROUNDED}.latents"]).abs().max() < 1e-3


def test_a_question_with_the_released_rotary_geometry(
    shared_lance: Path, wide_heads: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shared_lance / "golden", "x2t_image_1", monkeypatch, "hd128")
    answer = tasks.answer_request(wide_heads, run.request, run.meta["max_length"])
    assert answer.tokens == run.tensors["out.tokens"].tolist()


def test_an_edit_with_rounded_tables(
    shared_lance: Path, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shared_lance / "golden", "image_edit_1", monkeypatch)
    with rounding(tiny_pipeline):
        assert (latents(run, tiny_pipeline) - run.tensors[f"{ROUNDED}.latents"]).abs().max() < 1e-3


def test_an_answer_with_rounded_tables(
    golden: Path, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(golden, "x2t_image_1", monkeypatch)
    with rounding(tiny_pipeline):
        answer = tasks.answer_request(tiny_pipeline, run.request, run.meta["max_length"])
    assert answer.tokens == run.tensors[f"{ROUNDED}.tokens"].tolist()


@pytest.fixture(scope="module")
def bfloat16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny model as upstream runs it on a GPU: weights, arithmetic and tables in bfloat16."""
    folder = tmp_path_factory.mktemp("bf16") / "downloads"
    shutil.copytree(tiny_checkpoint.parent, folder)
    record = folder / tiny_checkpoint.name / "lance_workbench.json"
    own = json.loads(record.read_text())
    own["defaults"]["rounding"] = "upstream"
    record.write_text(json.dumps(own))
    return load_lance(record.parent, "cpu", torch.bfloat16)


def test_a_picture_in_bfloat16(golden: Path, bfloat16: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(golden, "t2i_1", monkeypatch)
    assert (latents(run, bfloat16) - run.tensors["variant.bf16.latents"]).abs().max() < 0.15


def test_an_edit_in_bfloat16(shared_lance: Path, bfloat16: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(shared_lance / "golden", "image_edit_1", monkeypatch)
    assert (latents(run, bfloat16) - run.tensors["variant.bf16.latents"]).abs().max() < 0.15


def test_logits_in_bfloat16(golden: Path, bfloat16: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens may tie and part; the logits of upstream's own tokens must not."""
    run = Run(golden, "x2t_image_1", monkeypatch)
    tokens = run.tensors["variant.bf16.tokens"].tolist()
    with torch.inference_mode():
        got = tasks.understand(bfloat16, run.request).logits(tokens)
    wanted = run.tensors["variant.bf16.logits"].float()
    keep = run.meta["len_tokenizer"]
    assert (got[:, :keep] - wanted[: len(tokens), :keep]).abs().max() < 0.15
