"""The shipped checkpoint: it loads, answers, draws, and stays small."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from core.demo import CHECKPOINT, FOLDER, NAME, SUITES
from core.demo.drawing import draw
from core.demo.export import RECORD
from core.demo.recognise import recognise
from core.demo.sizes import LLM_CONFIG, VISION_CONFIG
from core.lance.generation import answer, imagine
from core.lance.loading import Pipeline, load_lance

MIB = 2**20


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    return load_lance(CHECKPOINT, "cpu", torch.float32)


def samples(suite: str) -> list[dict[str, Any]]:
    return list(json.loads((SUITES / f"{suite}.json").read_text(encoding="utf-8"))["samples"])


def test_every_tensor_is_loaded_and_none_is_left_over(demo: Pipeline) -> None:
    assert sorted(demo.report.loaded) == sorted(name for name, _ in demo.model.named_parameters())
    assert demo.report.ignored == [] and demo.report.swapped == []


def test_its_files_say_what_the_code_says() -> None:
    record = json.loads((CHECKPOINT / "lance_workbench.json").read_text())
    assert record["name"] == NAME
    assert {key: record[key] for key in RECORD} == RECORD
    assert json.loads((CHECKPOINT / "llm_config.json").read_text()) == LLM_CONFIG
    assert json.loads((FOLDER / "Qwen2.5-VL-ViT" / "config.json").read_text()) == VISION_CONFIG


@pytest.mark.parametrize("kind", ["sign-limit", "pie-read"])
def test_it_answers_held_out_questions(demo: Pipeline, kind: str) -> None:
    sample = next(sample for sample in samples("demo-x2t") if sample["kind"] == kind)
    drawn = draw(kind, sample["seed"])
    found = answer(demo, [drawn.image], drawn.question, max_new_tokens=24)
    assert found.text == drawn.answer == sample["expected"]


def test_it_draws_what_a_held_out_caption_asks_for(demo: Pipeline) -> None:
    sample = samples("demo-t2i")[0]
    picture = imagine(demo, sample["prompt"], 96, 96, seed=sample["seed"])
    assert picture.image.size == (96, 96)
    assert recognise(picture.image) == (sample["shape"], sample["colour"])


def test_it_stays_small_enough_for_a_repository() -> None:
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 16 * MIB
    assert sum(sizes.values()) <= 40 * MIB
