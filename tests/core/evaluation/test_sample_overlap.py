"""Samples are known again by what they ask and show, and calibration leaves those alone that are evaluated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.calibration.record import load_record
from core.calibration.recording import register
from core.calibration.samples import plain_questions, sample_set
from core.errors import UsageError
from core.evaluation import job, overlap, suites
from core.evaluation.overlap import Evaluated
from core.store import Store


def write(folder: Path, picture: Image.Image, words: str, name: str) -> str:
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"{name}.png")
    sample = {
        "interleave_array": [f"{name}.png", ["Look.", words, "an answer of mine"]],
        "element_dtype_array": ["image", "text"],
        "istarget_in_interleave": [0, 1],
    }
    (folder / f"{name}.json").write_text(json.dumps({name: sample}))
    return str(folder / f"{name}.json")


def content(path: str) -> str:
    return overlap.content(suites.load(path).samples[0])


def test_names_do_not_matter_words_and_pictures_do(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    first = content(write(tmp_path / "a", red, "Which colour?", "one"))
    assert content(write(tmp_path / "b", red, "Which  colour? ", "two")) == first
    assert content(write(tmp_path / "c", blue, "Which colour?", "one")) != first
    assert content(write(tmp_path / "d", red, "Which shape?", "one")) != first


def test_prompts_of_the_suites_that_come_along_are_refused(tmp_path: Path) -> None:
    prompts = [sample.prompt for sample in suites.load("demo-t2i").samples]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"0.png": "a house", "1.png": prompts[7], "2.png": prompts[3]}))
    with pytest.raises(
        UsageError, match=r"mine\.json: sample 1 is evaluated on, in demo-t2i.*2 of 3.*--force"
    ):
        sample_set("lance-3b", ["t2i"], 8, [str(path)], 0)
    forced = sample_set("lance-3b", ["t2i"], 8, [str(path)], 0, force=True)
    assert len(forced.samples) == 3
    assert forced.evaluated == ("t2i/1", "t2i/2")
    clean = sample_set("lance-3b", ["t2i"], 1, [str(path)], 0)
    assert (len(clean.samples), clean.evaluated) == (1, ())


def test_samples_of_a_recorded_evaluation_are_refused(tmp_path: Path) -> None:
    red = Image.new("RGB", (30, 20), "red")
    mine = write(tmp_path / "a", red, "Which colour?", "one")
    again = write(tmp_path / "b", red, "Which colour?", "other")
    with Store.open(tmp_path / "runs.db") as store:
        kept: Any = {"contents": overlap.contents(suites.load(mine))}
        store.start_run(kind="evaluate", checkpoint="lance-3b", suite="one", task="x2t_image", manifest=kept)
        known = Evaluated(store)
        with pytest.raises(UsageError, match=r"other\.json: sample other is evaluated on, in run 1 \(one\)"):
            sample_set("lance-3b", ["x2t_image"], 8, [again], 0, evaluated=known)
    assert overlap.contents(suites.load("demo-t2i")) is None, (
        "suites that come along are known without a record"
    )


def test_an_evaluation_on_what_was_calibrated_on_says_so(tiny_world: Any, tmp_path: Path) -> None:
    """The tiny model's questions and prompts were calibrated on before they are evaluated on."""
    variant = tiny_world.variants["int4-awq"]["path"]
    prompts = str(tiny_world.parts[0].parents[2] / "prompts.json")
    spec = {"checkpoint": variant, "suites": [prompts], "limit": 1, "device": "cpu", "baseline": None}
    with Store.open(tmp_path / "runs.db") as store:
        register(store, tiny_world.calibration, load_record(tiny_world.calibration))
        context = type(tiny_world.context)(store)
        run = store.run(job.run(spec, context)["runs"][0])
        assert run["manifest"]["calibrated_on"] == 1
        assert any("was calibrated on 1 of its samples" in line for line in context.lines)
        assert overlap.calibrated_on(Path(variant), suites.load("demo-t2i", limit=2), store) == 0


def test_drawn_samples_are_none_of_the_suites() -> None:
    known = Evaluated()
    tasks = ["x2t_image", "t2i", "x2t_video", "t2v", "i2v", "image_edit", "video_edit"]
    chosen = sample_set("lance-demo", tasks, 12, [], 3)
    assert chosen.tasks == tasks and len(chosen.samples) == 12 * len(tasks)
    assert [sample.key for sample in chosen.samples if known.where(sample)] == []
    assert all(known.where(sample) == "demo-i2v" for sample in suites.load("demo-i2v").samples)


def test_plain_questions_suit_any_checkpoint() -> None:
    chosen = sample_set("lance-3b", ["text"], 8, [], 0)
    other = sample_set("lance-3b", ["text"], 8, [], 1)
    assert not {sample.question for sample in chosen.samples} & {sample.question for sample in other.samples}
    with pytest.raises(UsageError, match="99 samples of text: there are 32; ask for fewer"):
        plain_questions(99, 0)
    with pytest.raises(
        UsageError, match="lance-3b: calibrate it on samples of its own kind: give --suite FILE of t2v"
    ):
        sample_set("lance-3b", ["text", "t2v"], 2, [], 0)
