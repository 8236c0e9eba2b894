"""The engine on a CUDA device against the model's own modules, in bfloat16 on the embedded checkpoint."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from core.demo import CHECKPOINT
from core.lance.generation import Understanding, drawing, start_noise, teacher_forced
from core.lance.loading import Pipeline
from core.lance.prompts import INSTRUCTION_IMAGE
from core.lance.sampler import Sampling, sample
from core.runtime import load_model

pytestmark = pytest.mark.gpu

QUESTIONS = ("What shape is shown?", "How many red circles are there?", "Describe the picture.")


@pytest.fixture(scope="module")
def fast() -> Pipeline:
    pipeline = load_model(CHECKPOINT, "cuda", torch.bfloat16)
    assert pipeline.engine is not None
    return pipeline


@pytest.fixture(scope="module")
def plain(fast: Pipeline) -> Pipeline:
    return dataclasses.replace(fast, engine=None)


def picture(index: int) -> Image.Image:
    image = Image.linear_gradient("L").rotate(90 * index).convert("RGB")
    image.paste((200, 30 + 70 * index, 40), (40 + 10 * index, 60, 150, 170))
    return image


@torch.inference_mode()
def test_tokens_are_those_of_one_pass_without_a_static_cache(fast: Pipeline, plain: Pipeline) -> None:
    """Several questions in a row: the static cache and its graph are used again, from the first token to many."""
    for index, question in enumerate(QUESTIONS):
        image = picture(index)
        steps = list(Understanding.of_images(fast, [image], question).steps(40))
        tokens = [token for token, _ in steps]
        ours = torch.stack([logits for _, logits in steps])
        theirs = teacher_forced(plain, [image], question, INSTRUCTION_IMAGE, tokens)
        finite = theirs.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        assert tokens == ours.argmax(-1).tolist()
        assert (ours - theirs)[finite].pow(2).mean().sqrt() < 0.02 * theirs[finite].std()
        # Where two answers are level in bfloat16, either may be chosen.
        best = theirs.max(-1).values
        assert (best - theirs.gather(1, torch.tensor(tokens, device="cuda")[:, None])[:, 0]).max() <= 0.125
        wanted = [token for token, _ in Understanding.of_images(plain, [image], question).steps(40)]
        level = theirs.topk(2).values.diff().abs().min() <= 0.125
        assert tokens == wanted or level


@torch.inference_mode()
def test_an_answer_cut_short_leaves_the_next_one_alone(fast: Pipeline) -> None:
    """A caller that stops leaves a step in flight."""

    def answer() -> list[int]:
        return [token for token, _ in Understanding.of_images(fast, [picture(0)], QUESTIONS[2]).steps(12)]

    wanted = answer()
    for _ in Understanding.of_images(fast, [picture(1)], QUESTIONS[1]).steps(2):
        pass
    assert answer() == wanted


@torch.inference_mode()
def test_a_picture_is_that_of_separate_passes(fast: Pipeline, plain: Pipeline) -> None:
    """Eager, captured and replayed steps, with and without guidance."""
    caption, settings = "A red circle on a white background.", Sampling(num_steps=12)
    noise = start_noise(36, 5).cuda()
    assert fast.engine is not None
    ours = sample(noise, fast.engine.velocities(drawing(fast, caption, 96, 96)), settings)
    theirs = sample(noise, drawing(plain, caption, 96, 96).velocities, settings)
    assert ours.isfinite().all()
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
