"""The shipped suites are what the code writes, and are fair samples of the held-out world."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from core.demo import SUITES, suites
from core.demo.drawing import HELD_OUT, KINDS
from core.demo.monitor import prompts
from core.demo.moving import MOVES, moving
from core.demo.recognise import recognise


def shipped(name: str) -> Any:
    return json.loads((SUITES / f"{name}.json").read_text(encoding="utf-8"))


def test_writing_the_suites_anew_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SUITES", tmp_path)
    suites.main()
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in SUITES.iterdir() if path.suffix == ".json")
    for name in written:
        assert (tmp_path / name).read_bytes() == (SUITES / name).read_bytes(), name


def test_questions_come_from_held_out_seeds_in_equal_shares() -> None:
    samples = shipped("demo-x2t")["samples"]
    assert len(samples) == 200
    assert len({sample["key"] for sample in samples}) == 200
    assert min(sample["seed"] for sample in samples) >= HELD_OUT
    shares = Counter(sample["kind"] for sample in samples)
    assert shares.keys() == set(KINDS)
    assert all(abs(count - 200 / len(KINDS)) <= 1 for count in shares.values())
    first = Counter(sample["kind"] for sample in samples[: len(KINDS)])
    assert set(first.values()) == {1}, "the first samples are a fair subset"


def test_prompts_are_not_the_monitors() -> None:
    samples = shipped("demo-t2i")["samples"]
    assert len(samples) == 50
    assert len({sample["key"] for sample in samples}) == 50
    assert len({sample["seed"] for sample in samples}) == 50
    monitored = [(drawn.prompt, drawn.image.tobytes()) for drawn in prompts(50)]
    drawn = [suites.caption(HELD_OUT + number) for number in range(50)]
    assert [sample.prompt for sample in drawn] == [sample["prompt"] for sample in samples]
    assert not {(sample.prompt, sample.image.tobytes()) for sample in drawn} & set(monitored)


@pytest.mark.parametrize("task", ["x2t_video", "t2v", "i2v", "image_edit", "video_edit"])
def test_suites_of_untrained_tasks_say_so(task: str) -> None:
    suite = shipped("demo-" + task.replace("_", "-"))
    assert suite["task"] == task
    assert f"was not trained for {task}" in suite["description"]
    assert not any("expected" in sample for sample in suite["samples"])


def test_a_clip_shows_what_its_prompt_says() -> None:
    for seed in range(HELD_OUT, HELD_OUT + 20):
        clip = moving(seed)
        assert len({frame.tobytes() for frame in clip.frames}) == len(clip.frames)
        shape, colour = recognise(clip.frames[2])
        assert f"{colour} {shape} moves" in clip.prompt
        move = next(name for name in MOVES if f"moves {name} on" in clip.prompt)
        right, down = _middle(clip.frames[-1]) - _middle(clip.frames[0])
        assert right * MOVES[move][0] + down * MOVES[move][1] > 40
        assert abs(right * MOVES[move][1]) + abs(down * MOVES[move][0]) < 2


def _middle(frame: Image.Image) -> numpy.ndarray:
    """Centre (x, y) of what is not background."""
    pixels = numpy.asarray(frame).astype(int)
    return numpy.argwhere(numpy.abs(pixels - pixels[0, 0]).sum(axis=2) > 0).mean(axis=0)[::-1]
