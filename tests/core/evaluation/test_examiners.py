"""What an examiner records of a sample is what the model's own entry points give for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.evaluation.answers import AnswerExaminer
from core.evaluation.drawings import DrawingExaminer
from core.evaluation.samples import Sample, Settings
from core.evaluation.visuals import PictureFile
from core.lance.generation import answer, imagine, teacher_forced
from core.lance.sampler import Sampling
from core.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "runs.db") as opened:
        yield opened


def test_answer_and_likelihood(store: Store, tiny_pipeline: Any, golden: Path) -> None:
    sample = Sample("1", "x2t_image", "What?", "Look.", None, (PictureFile(golden / "media" / "img1.png"),))
    settings = Settings.combine(tiny_pipeline.defaults, {"max_new_tokens": 6})
    examiner = AnswerExaminer(tiny_pipeline, settings, store, None, keep=True)
    fields = examiner.examine(0, sample)
    images = sample.visuals()
    expected = answer(tiny_pipeline, images, "What?", "Look.", 6)
    assert (fields["tokens"], fields["text"]) == (expected.tokens, expected.text)
    logits = teacher_forced(tiny_pipeline, images, "What?", "Look.", expected.tokens)
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(examiner.kept[0].values, log_probs, rtol=1e-4, atol=1e-4)
    nll = -log_probs[torch.arange(len(expected.tokens)), torch.tensor(expected.tokens)].mean()
    assert fields["nll"] == pytest.approx(float(nll), abs=1e-4)


def test_picture_and_velocities(store: Store, tiny_pipeline: Any) -> None:
    sample = Sample("1", "t2i", prompt="a red cube", seed=5)
    settings = Settings.combine(tiny_pipeline.defaults, {"height": 32, "width": 32, "num_steps": 5})
    examiner = DrawingExaminer(tiny_pipeline, settings, store, None, keep=True)
    fields = examiner.examine(0, sample)
    expected = imagine(tiny_pipeline, "a red cube", 32, 32, Sampling(5), seed=5, trace=True)
    assert store.media(fields["output_media"]).startswith(b"\x89PNG")
    assert expected.trace is not None
    kept = examiner.kept[0]
    torch.testing.assert_close(kept.latents, torch.stack(expected.trace.latents))
    torch.testing.assert_close(kept.velocities, torch.stack(expected.trace.conditional), rtol=1e-4, atol=1e-4)
    assert kept.times.tolist() == pytest.approx(expected.trace.times)
