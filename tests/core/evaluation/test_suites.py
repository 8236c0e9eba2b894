"""Suite files of every format, and what is said about those that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from core.errors import DataError, UsageError
from core.evaluation import lance_samples, suites
from core.evaluation.samples import Settings, check_size
from core.evaluation.visuals import PictureFile
from core.lance.video import Clip, write_media

SHARED = Path(__file__).resolve().parents[4] / "shared" / "lance" / "x2t_image"


def _question(picture: str = "cat.png", text: Any = None, **changes: Any) -> dict[str, Any]:
    return {
        "interleave_array": [picture, ["Look.", "How many?", "Two."] if text is None else text],
        "element_dtype_array": ["image", "text"],
        "istarget_in_interleave": [0, 1],
    } | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("a/cat.png", "a/media/dog.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), "red").save(tmp_path / place)
    return tmp_path / "a"


def _write(folder: Path, content: Any, name: str = "set.json") -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


def test_questions(folder: Path) -> None:
    suite = suites.load(_write(folder, {"0001": _question(), "0002": _question("far/away/dog.png")}))
    assert (suite.name, suite.task, len(suite.samples)) == ("set", "x2t_image", 2)
    first = suite.samples[0]
    assert (first.key, first.instruction, first.question, first.expected) == (
        "0001",
        "Look.",
        "How many?",
        "Two.",
    )
    assert first.visuals()[0].size == (20, 10)
    assert suite.samples[1].pictures == (PictureFile((folder / "media/dog.png").resolve()),)


def test_media_are_sought_from_the_working_directory_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8)).save(elsewhere / "cat.png")
    path = _write(folder, {"1": _question()})
    monkeypatch.chdir(elsewhere)
    assert suites.load(path).samples[0].visuals()[0].size == (8, 8)


def test_captions_have_no_question_and_one_of_upstreams_instructions(folder: Path) -> None:
    content = {"7.png": _question(text="A red square.")}
    first, again = (suites.load(_write(folder, content)).samples[0] for _ in range(2))
    assert (first.question, first.expected) == ("", "A red square.")
    wanted = [text.format(medium="image") for text in lance_samples.CAPTION_INSTRUCTIONS]
    assert first.instruction in wanted
    assert first == again


def test_several_images(folder: Path) -> None:
    sample = _question(
        interleave_array=["cat.png", "dog.png", ["Look.", "Which?", ""]],
        element_dtype_array=["image", "image", "text"],
        istarget_in_interleave=[0, 0, 1],
    )
    loaded = suites.load(_write(folder, {"1": sample})).samples[0]
    assert len(loaded.visuals()) == 2
    assert loaded.expected is None


def test_prompts(folder: Path) -> None:
    suite = suites.load(_write(folder, {"000000.png": "A red cube", "000001.png": "Two"}))
    assert suite.task == "t2i"
    assert [(sample.key, sample.prompt, sample.seed) for sample in suite.samples] == [
        ("000000", "A red cube", 42),
        ("000001", "Two", 42),
    ]


def test_json_lines(folder: Path) -> None:
    lines = "\n".join(json.dumps({"index": i, "data": _question()}) for i in range(3)) + "\n\n"
    assert [s.key for s in suites.load(_write(folder, lines, "set.jsonl")).samples] == ["0", "1", "2"]
    twice = '{"index": 1, "data": "a"}\n{"index": 1, "data": "b"}'
    with pytest.raises(DataError, match="line 2: the index 1 occurs twice"):
        suites.load(_write(folder, twice, "twice.jsonl"))


def test_own_format_and_settings(folder: Path) -> None:
    content = {
        "name": "mine",
        "task": "t2i",
        "settings": {"num_steps": 4, "height": 64},
        "samples": [{"key": "a", "prompt": "a red circle", "shape": "circle", "colour": "red", "seed": 9}],
    }
    suite = suites.load(_write(folder, content))
    assert (suite.name, suite.samples[0].shape, suite.samples[0].seed) == ("mine", "circle", 9)
    defaults = {
        "resolution": "image_256res", "height": 96, "width": 96, "num_steps": 30,
        "timestep_shift": 3.5, "cfg_text_scale": 4.0, "rounding": "plain",
    }  # fmt: skip
    settings = Settings.combine(defaults, suite.settings, {"resolution": None, "width": 32})
    assert (settings.num_steps, settings.height, settings.width) == (4, 64, 32)
    assert settings.resolution == "image_256res"


def test_limit_takes_the_first(folder: Path) -> None:
    path = _write(folder, {f"{i}.png": f"prompt {i}" for i in range(5)})
    assert [sample.key for sample in suites.load(path, limit=2).samples] == ["0", "1"]
    with pytest.raises(UsageError, match="limit 0"):
        suites.load(path, limit=0)


def test_fingerprint_follows_content_not_place(folder: Path) -> None:
    one = suites.load(_write(folder, {"1": _question()}))
    other = folder.parent / "b"
    other.mkdir()
    (other / "cat.png").write_bytes((folder / "cat.png").read_bytes())
    assert suites.load(_write(other, {"1": _question()}, "other.json")).fingerprint == one.fingerprint
    assert (
        suites.load(_write(folder, {"1": _question(text=["Look.", "How few?", ""])})).fingerprint
        != one.fingerprint
    )
    Image.new("RGB", (20, 10), "blue").save(other / "cat.png")
    assert suites.load(str(other / "other.json")).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[" * 5000, "no JSON"),
        ([1], "holds a list of 1, wanted an object"),
        ({}, "holds no samples"),
        ({"1": 5}, "1 is a number, wanted a prompt or an object"),
        ({"1": {"interleave_array": []}}, r"1\.element_dtype_array is a missing value"),
        ({"1": _question(istarget_in_interleave=[1])}, "2 items, 2 types and 1 targets"),
        ({"1": _question(element_dtype_array=["audio", "text"])}, "'audio', wanted text, image or video"),
        ({"1": _question(text=["only", "two"])}, r"list of 2, wanted \[instruction, question, answer\]"),
        ({"1": _question("bird.png")}, "the image bird.png is not there"),
        ({"1": "a prompt", "2": _question()}, "2 is a x2t_image sample, 1 a t2i one"),
        ({"task": "t2v", "samples": []}, "wanted samples in a list or an object"),
        ({"task": "i2v", "samples": {"1": _question()}}, "1 is a x2t_image sample, wanted i2v"),
        ({"task": "i2v", "samples": [{"key": "a", "prompt": "b", "seed": 1}]}, r"lacks one of .* drawing"),
        ({"1.png": "a", "1.jpg": "b"}, "the key 1 occurs twice"),
        ({"task": "t2i", "samples": [{"key": "a"}]}, r"samples\[0\] lacks one of key, prompt, seed"),
        ({"task": "t2i", "samples": [{"key": "a", "prompt": "b", "seed": "c"}]}, "seed is a string"),
        ({"task": "t2i", "samples": [{"key": "a", "prompt": "b", "seed": 1}] * 2}, "the key a occurs twice"),
        ({"task": "t2i", "samples": [{}], "settings": {"steps": 3}}, "settings.steps: unknown"),
        (
            {"task": "t2i", "samples": [{}], "settings": {"height": "3"}},
            "settings.height is a string, wanted int",
        ),
    ],
)
def test_other_shapes_name_file_and_key(folder: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        suites.load(_write(folder, content))
    assert "set.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def _source(visual: str = "cat.png", kind: str = "image", text: Any = "Make it blue.") -> dict[str, Any]:
    """A text and a source, which Lance's files list in this order."""
    return {
        "interleave_array": [text, visual],
        "element_dtype_array": ["text", kind],
        "istarget_in_interleave": [0, 0],
    }


def test_every_task_is_told_from_its_samples(folder: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV (extra `video`)")
    write_media(folder / "clip.mp4", numpy.zeros((9, 32, 48, 3), numpy.uint8))
    of_clip = _question("clip.mp4", element_dtype_array=["video", "text"])
    cases = {
        "a.json": ({"000000.mp4": "a wave"}, "t2v"),
        "b.json": ({"1": of_clip}, "x2t_video"),
        "c.json": ({"1": _source("clip.mp4", "video")}, "video_edit"),
        "image_edit_example.json": ({"1": _source()}, "image_edit"),
        "i2v_example.json": ({"1": _source()}, "i2v"),
        "d.json": ({"task": "i2v", "settings": {"num_frames": 5}, "samples": {"1": _source()}}, "i2v"),
        "e.txt": ("Why is the sky blue?\n\nName a fruit.\n", "text"),
        "f.json": ({"task": "text", "samples": {"1": "Name a fruit."}}, "text"),
    }
    for name, (content, task) in cases.items():
        suite = suites.load(_write(folder, content, name))
        assert {sample.task for sample in suite.samples} == {suite.task} == {task}, name
    assert suites.load(str(folder / "e.txt")).samples[1].question == "Name a fruit."
    clip = suites.load(str(folder / "b.json")).samples[0].visuals()[0]
    assert isinstance(clip, Clip) and len(clip.frames) == 9
    edit = suites.load(str(folder / "image_edit_example.json")).samples[0]
    assert (edit.prompt, edit.question, len(edit.visuals())) == ("Make it blue.", "", 1)


def test_a_picture_and_a_text_may_be_two_tasks(folder: Path) -> None:
    path = _write(folder, {"1": _source()})
    with pytest.raises(
        UsageError, match=r"set\.json: 1 is a picture and a text, which may be i2v or image_edit"
    ):
        suites.load(path)
    for task in ("i2v", "image_edit"):
        assert suites.load(path, task=task).task == task


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"1": _question(text=["Look.", "What is <|vision_start|>?", ""])},
            r"1: the prompt holds <\|vision_start",
        ),
        (
            {"1.png": "a cat <|endoftext|>"},
            r"1\.png: the prompt holds <\|endoftext\|>, which marks structure",
        ),
        (
            {"task": "t2i", "samples": [{"key": "a", "prompt": "<|im_end|>", "seed": 1}]},
            r"samples\[0\]: the prompt",
        ),
        ({"1": _source("sliver.png")}, r"sliver\.png: an image of 1 x 10000 px is too narrow"),
        ({"1": _source(text=["a", "b", "c"])}, "1 sources and the text list of 3, wanted one image or video"),
        ({"1": _source("note.mp4", "video")}, r"note\.mp4: not a video that can be read"),
        ({"1": _source("sound.mp4", "video")}, r"sound\.mp4: holds no video frames"),
        ({"1": _source("gone.mp4", "video")}, r"the video gone\.mp4 is not there"),
    ],
)
def test_what_lance_cannot_be_given_is_told_before_a_model_is_loaded(
    folder: Path, content: Any, message: str
) -> None:
    av = pytest.importorskip("av", reason="needs PyAV (extra `video`)")
    Image.new("RGB", (1, 10_000)).save(folder / "sliver.png")
    (folder / "note.mp4").write_text("not a video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(numpy.zeros((1, 1024), numpy.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=message) as raised:
        suites.load(_write(folder, content, "image_edit.json"))
    assert "\n" not in str(raised.value)


def test_an_image_that_is_none(folder: Path) -> None:
    (folder / "cat.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"cat\.png: not an image"):
        suites.load(_write(folder, {"1": _question()}))
    with pytest.raises(DataError, match="not a text file"):
        suites.load(str(_binary(folder)))


def _binary(folder: Path) -> Path:
    path = folder / "binary.json"
    path.write_bytes(os.urandom(8) + b"\xff\xfe")
    return path


@pytest.mark.parametrize("name", suites.names())
def test_suites_that_come_along_can_be_read(name: str) -> None:
    suite = suites.load(name, limit=2)
    assert suite.name == name
    seen = [visual for sample in suite.samples for visual in sample.visuals()]
    assert len(seen) == (0 if suite.task in ("t2i", "t2v") else 2)
    assert len(suites.load(name).samples) >= (50 if name in ("demo-t2i", "demo-x2t") else 3)


def test_unknown_suite_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="demo-x3t: no such suite") as raised:
        suites.load("demo-x3t")
    assert all(name in str(raised.value) for name in suites.names())


@pytest.mark.parametrize(
    ("size", "nearest"), [((100, 96), "height 100.*nearest is 96"), ((96, 5), "width 5.*is 16")]
)
def test_sizes_lance_cannot_draw(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(UsageError, match=nearest):
        check_size(*size)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="Lance's example set lies beside the checkout only where it was fetched"
)
def test_lances_six_samples_run_unchanged() -> None:
    suite = suites.load(str(SHARED / "x2t_image_example.json"))
    assert [sample.key for sample in suite.samples] == [f"{i:04}" for i in range(1, 7)]
    assert suite.samples[1].question == "What percentage of respondents want better border security?"
    assert suite.samples[1].expected == "29%"
    assert {sample.visuals()[0].mode for sample in suite.samples} == {"RGB"}
    drawn = suites.load(str(SHARED / "t2i_example.json"))
    assert drawn.task == "t2i"
    assert drawn.samples[1].prompt == 'A cat holds a poster with rainbow text "STOP"'
    assert suites.load(str(SHARED / "t2v_example.json")).task == "t2v"
    edits = suites.load(str(SHARED / "image_edit_example.json"))
    assert (edits.task, len(edits.samples)) == ("image_edit", 5)
    for other, visual in (("i2v", "image"), ("video_edit", "video"), ("x2t_video", "video")):
        # Upstream's other media do not lie beside the files.
        with pytest.raises(DataError, match=f"the {visual} .* is not there"):
            suites.load(str(SHARED / f"{other}_example.json"))
