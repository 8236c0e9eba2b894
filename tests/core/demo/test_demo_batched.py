"""The batched training forward equals the packed, cached inference path."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch.nn import functional

from core.checkpoints.describe import DEFAULTS
from core.demo import CHECKPOINT
from core.demo.batched import BatchedLance, Captions
from core.demo.captions import caption
from core.demo.drawing import scene
from core.demo.sizes import lance_config
from core.demo.texts import Texts
from core.lance.generation import drawing, teacher_forced
from core.lance.loading import LoadReport, Pipeline, load_tokenizer
from core.lance.model import Lance
from core.lance.prompts import INSTRUCTION_IMAGE
from core.lance.vision import patchify


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(5)
    model = Lance(lance_config()).eval().requires_grad_(False)
    tokenizer = load_tokenizer(CHECKPOINT)
    return Pipeline(
        model,
        tokenizer,
        CHECKPOINT,
        torch.float32,
        dict(DEFAULTS, resolution="image_256res"),
        LoadReport([], [], []),
    )


@pytest.fixture(scope="module")
def batched(pipeline: Pipeline) -> BatchedLance:
    return BatchedLance(pipeline.model, Texts(CHECKPOINT))


def test_vision_features_equal_the_tower(pipeline: Pipeline, batched: BatchedLance) -> None:
    images = [numpy.asarray(scene(family, 3).image) for family in ("bar", "plate")]
    pixels = torch.from_numpy(numpy.stack(images))
    mine = batched.see(pixels, torch.float32)
    for index, picture in enumerate(pixels):
        normal = (picture.permute(2, 0, 1).float() - batched.pixel_mean) / batched.pixel_std
        patches, grid = patchify(normal[:, None])
        theirs = pipeline.model.vit_model.features(patches, [grid])
        assert torch.allclose(mine[index], theirs, atol=1e-4)


def test_question_logits_equal_inference(pipeline: Pipeline, batched: BatchedLance) -> None:
    texts = Texts(CHECKPOINT)
    drawn = scene("pie", 11)
    questions = drawn.questions[-3:]
    cut = [texts.segment(question) for question in questions]
    pixels = torch.from_numpy(numpy.asarray(drawn.image).copy())[None]
    segments = torch.tensor(numpy.stack([ids for ids, _, _ in cut])).long()[None]
    starts = torch.tensor([[start for _, start, _ in cut]])
    mine = batched.answers(pixels, segments, starts, torch.float32)[0]
    for row, (ids, start, count), question in zip(mine, cut, questions, strict=True):
        tokens = ids[start : start + count].tolist()
        theirs = teacher_forced(pipeline, [drawn.image], question.text, INSTRUCTION_IMAGE, tokens)
        assert torch.allclose(row[: len(tokens)], theirs[:, : row.shape[1]], atol=1e-3)


@pytest.mark.parametrize("conditional", [True, False])
def test_velocities_equal_inference(pipeline: Pipeline, batched: BatchedLance, conditional: bool) -> None:
    texts = Texts(CHECKPOINT)
    prompts = [caption(seed).prompt for seed in (1, 2, 3)]
    noise = torch.randn(3, 36, 48, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.9, 0.5, 0.2])
    cut = [texts.caption(prompt) for prompt in prompts]
    captions = Captions(
        torch.tensor(numpy.stack([ids for ids, _ in cut])).long(),
        torch.tensor([length for _, length in cut]),
        torch.full((3,), not conditional),
        torch.ones(3, dtype=torch.bool),
    )
    mine = batched.velocity(captions, noise, times, torch.float32)
    for row, prompt, x, time in zip(mine, prompts, noise, times.tolist(), strict=True):
        with torch.inference_mode():
            theirs = drawing(pipeline, prompt, 96, 96).velocity(x, time, conditional)
        assert torch.allclose(row, theirs, atol=1e-3)
        assert functional.mse_loss(theirs, torch.zeros_like(theirs)) > 1e-4
