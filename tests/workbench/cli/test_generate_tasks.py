"""``generate`` for all seven tasks on files, with the random tiny checkpoint of each layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from PIL import Image

from core.lance.video import read_clip
from workbench.cli.main import run_command

av = pytest.importorskip("av", reason="needs PyAV (extra `video`)")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """A folder with a picture, a clip, things that are neither, and a checkpoint of each layout."""
    folder = tmp_path_factory.mktemp("generate")
    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    Image.new("RGB", (1, 10_000), "red").save(folder / "sliver.png")
    (folder / "note.mp4").write_text("not a video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(numpy.zeros((1, 1024), numpy.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for level in range(6):
            picture = numpy.full((48, 64, 3), 30 * level, numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    for layout in ("image", "video"):
        words = ["--size", "tiny", "--layout", layout, "--tokenizer", str(golden / "tokenizer_tiny")]
        command = ["--db", str(folder / "runs.db"), "checkpoints", "random", str(folder / layout), *words]
        assert run_command(command) == 0
    return folder


@pytest.fixture
def run(files: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path | int) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["--db", str(files / "runs.db"), "generate", "--device", "cpu", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


VIDEO = ("--checkpoint", "lance-random-tiny-video", "--prompt", "a red cube")
FAST = ("--steps", 2, "--seed", 5)


@pytest.mark.parametrize(
    ("task", "words", "shape"),
    [
        ("t2i", ["--height", 32, "--width", 48], (1, 32, 48)),
        ("image_edit", ["--image", "red.png", "--resolution", "image_256res"], (1, 224, 304)),
        ("t2v", ["--height", 32, "--width", 48, "--frames", 8], (5, 32, 48)),
        ("i2v", ["--image", "red.png", "--frames", 5, "--resolution", "video_192p"], (5, 224, 304)),
        ("video_edit", ["--video", "clip.mp4", "--resolution", "video_192p"], (5, 224, 304)),
    ],
)
def test_pictures_and_clips(
    task: str, words: list[str | int], shape: tuple[int, int, int], run: Run, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"made.{'png' if shape[0] == 1 else 'mp4'}"
    places = [files / word if str(word).endswith((".png", ".mp4")) else word for word in words]
    code, printed, err = run("--task", task, *VIDEO, *FAST, *places, "--out", out, "--json")
    assert code == 0, err
    result = json.loads(printed)
    assert (result["task"], result["frames"], result["out"]) == (task, shape[0], str(out))
    if shape[0] == 1:
        assert Image.open(out).size == (shape[2], shape[1])
        return
    clip = read_clip(out)
    assert (clip.total, clip.fps, clip.frames[0].size) == (shape[0], 12, (shape[2], shape[1]))


@pytest.mark.parametrize(
    ("task", "option", "file"), [("x2t_image", "--image", "red.png"), ("x2t_video", "--video", "clip.mp4")]
)
def test_questions(task: str, option: str, file: str, run: Run, files: Path) -> None:
    code, printed, err = run("--task", task, *VIDEO, option, files / file, "--max-new-tokens", 3, "--json")
    assert code == 0, err
    answer = json.loads(printed)
    assert 1 <= len(answer["tokens"]) <= 3 and answer["out"] is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--task", "i2v", "--out", "a.mp4"], 2, "i2v needs --image FILE"),
        (["--task", "video_edit"], 2, "video_edit needs --video FILE and --out FILE.mp4"),
        (["--task", "t2v", "--out", "a.mp4", "--image", "red.png"], 2, "--image: not an option of the task t2v"),
        (["--task", "t2v", "--out", "a.mp4", "--frames", "122"], 2, "122 frames asked for; wanted 1 to 121"),
        (["--task", "t2v", "--out", "a.png", "--frames", "9"], 2, "9 frames make a video; wanted"),
        (["--task", "t2v", "--out", "a.mp4", "--checkpoint", "lance-random-tiny"], 1, "an image checkpoint"),
        (["--task", "x2t_video", "--video", "note.mp4"], 1, "note.mp4: not a video that can be read"),
        (["--task", "x2t_video", "--video", "gone.mp4"], 1, "gone.mp4: no such video"),
        (["--task", "video_edit", "--video", "sound.mp4", "--out", "a.mp4"], 1, "sound.mp4: holds no video frames"),
        (["--task", "t2v", "--prompt", "a<|endoftext|>", "--out", "a.mp4"], 2, "the prompt holds <|endoftext|>"),
        (["--task", "x2t_image", "--image", "sliver.png"], 1, "1 x 10000 px is too narrow"),
        (["--task", "x2t_image", "--image", "red.png", "--resolution", "4k"], 2, "4k: no such resolution"),
        (["--task", "image_edit", "--image", "red.png", "--out", "a.mp4"], 2, "a.mp4: one frame makes a picture"),
        (["--task", "t2i", "--prompt", "a<|im_end|>", "--out", "a.png"], 2, "the prompt holds <|im_end|>"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: list[str], code: int, message: str, run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    got, printed, err = run(*VIDEO, *words)
    assert (got, printed) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (files / "a.mp4").exists() and not (files / "a.png").exists()


def test_too_little_memory_is_told_before_loading(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the tiny checkpoint fit, its largest clip does not."""
    monkeypatch.setattr("core.runtime.memory.free_bytes", lambda device: 100_000_000)
    monkeypatch.setattr("core.evaluation.single.load_model", lambda *_: pytest.fail("loaded"))
    size = ["--height", 512, "--width", 512, "--frames", 121]
    code, printed, err = run("--task", "t2v", *VIDEO, *size, "--out", tmp_path / "a.mp4")
    assert (code, printed) == (1, "")
    assert "lance-random-tiny-video: this takes about" in err and "are free; ask for a smaller" in err
