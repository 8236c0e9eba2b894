"""The engine computes what the model's own modules compute: tokens, logits, velocities, whole pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from core.lance.generation import Understanding, answer, drawing, imagine, start_noise
from core.lance.loading import Pipeline, load_lance
from core.lance.preprocess import read_image
from core.lance.sampler import Sampling
from core.runtime.engine import Engine
from core.runtime.projections import FusedLinear

QUESTION = "What colour is the round shape on the left?"
CAPTION = "A red cube on a blue table, soft light."


@pytest.fixture(scope="module")
def fast(tiny_checkpoint: Path) -> Pipeline:
    pipeline = load_lance(tiny_checkpoint, "cpu", torch.float32)
    return dataclasses.replace(pipeline, engine=Engine(pipeline.model))


@torch.inference_mode()
def test_decoding(fast: Pipeline, tiny_pipeline: Any, golden: Path) -> None:
    """Twice, because a static cache is used again by the next question."""
    for name, question in (("img1.png", QUESTION), ("img2.png", "How many circles do you see?")):
        image = read_image(golden / "media" / name)
        plain = Understanding.of_images(tiny_pipeline, [image], question)
        wanted = list(plain.steps(12))
        got = list(Understanding.of_images(fast, [image], question).steps(12))
        assert [token for token, _ in got] == [token for token, _ in wanted]
        ours, theirs = (torch.stack([logits for _, logits in run]) for run in (got, wanted))
        finite = theirs.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        assert (ours[finite] - theirs[finite]).abs().max() < 1e-4


@torch.inference_mode()
def test_scoring_after_decoding_leaves_the_cache_alone(
    fast: Pipeline, tiny_pipeline: Any, golden: Path
) -> None:
    image = read_image(golden / "media" / "img1.png")
    tokens = answer(fast, [image], QUESTION, max_new_tokens=5).tokens
    ours = Understanding.of_images(fast, [image], QUESTION)
    first, second = ours.logits(tokens), ours.logits(tokens)
    assert torch.equal(first, second)
    theirs = Understanding.of_images(tiny_pipeline, [image], QUESTION).logits(tokens)
    assert (first - theirs).nan_to_num().abs().max() < 1e-4


@torch.inference_mode()
def test_decoding_ends_where_the_cache_does(fast: Pipeline) -> None:
    """A step is launched ahead of the one that is read, but none behind the last row."""
    assert fast.engine is not None
    cache = fast.engine.new_cache(10)
    cache.advance(cache.capacity - 3)
    steps = list(fast.engine.decode(cache, 1, 7, len(fast.tokenizer)))
    assert len(steps) == 3 and cache.length == cache.capacity
    assert [token for token, _ in steps] == [int(logits.argmax()) for _, logits in steps]
    assert list(fast.engine.decode(cache, 1, 7, len(fast.tokenizer))) == []


@torch.inference_mode()
def test_both_velocities_in_one_pass(fast: Pipeline, tiny_pipeline: Any) -> None:
    reader = drawing(tiny_pipeline, CAPTION, 96, 128)
    assert fast.engine is not None
    batched = fast.engine.velocities(drawing(fast, CAPTION, 96, 128))
    x = start_noise(48, 3)
    for time, guided in ((1.0, True), (0.9, True), (0.2, False), (0.5, True)):
        for ours, theirs in zip(batched(x, time, guided), reader.velocities(x, time, guided), strict=True):
            if theirs is None:
                assert ours is None
            else:
                assert ours is not None and (ours - theirs).abs().max() < 1e-4


def test_whole_picture(fast: Pipeline, tiny_pipeline: Any) -> None:
    settings = Sampling(num_steps=4)
    ours = imagine(fast, CAPTION, 64, 96, settings, seed=1)
    theirs = imagine(tiny_pipeline, CAPTION, 64, 96, settings, seed=1)
    assert (ours.latents - theirs.latents).abs().max() < 1e-3


def test_fused_weights_are_shared_with_the_modules(fast: Pipeline) -> None:
    """Fusing must not hold a second copy, nor change what the modules hold."""
    attention = fast.model.get_submodule("language_model.model.layers.0.self_attn")
    weights = [getattr(attention, f"{name}_proj").weight for name in "qkv"]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    assert fast.engine is not None


def test_matrices_that_lie_one_behind_the_other_are_fused_without_a_copy() -> None:
    whole = torch.randn(12, 8)
    linears = [torch.nn.Linear(8, rows, bias=False) for rows in (6, 4, 2)]
    for linear, part in zip(linears, whole.split([6, 4, 2]), strict=True):
        linear.weight = torch.nn.Parameter(part, requires_grad=False)
    fused = FusedLinear(linears)
    assert fused.weight.data_ptr() == whole.data_ptr() and torch.equal(fused.weight, whole)
    for others in (linears[1:], linears[:1] + linears[2:], [linears[0], torch.nn.Linear(8, 6, bias=False)]):
        wanted = torch.cat([linear.weight.data for linear in others])
        assert torch.equal(FusedLinear(others).weight, wanted)
