"""Reading and writing clips: upstream's choice of frames, several containers, and files that are no video."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import DataError, UsageError, WorkbenchError
from core.lance.video import encode_mp4, frame_indices, read_clip, write_media

av = pytest.importorskip("av", reason="needs PyAV (extra `video`)")

SPEEDS = {"mp4": ("libx264", "mp4"), "webm": ("libvpx-vp9", "webm"), "mkv": ("mpeg4", "matroska")}


def ramp(count: int, height: int = 48, width: int = 64) -> numpy.ndarray:
    """Frames uint8 [count, H, W, 3] of one grey each, five levels brighter from one to the next."""
    return (
        numpy.arange(count, dtype=numpy.uint8)[:, None, None, None]
        * 5
        * numpy.ones((1, height, width, 3), numpy.uint8)
    )


def write_clip(path: Path, frames: numpy.ndarray, fps: int = 24) -> Path:
    codec, kind = SPEEDS[path.suffix[1:]]
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_are_those_upstream_takes(golden: Path) -> None:
    for case in json.loads((golden / "modules" / "frame_sampler.json").read_text()):
        assert frame_indices(case["total"], case["fps"]) == case["indices"], case


@settings(deadline=None)
@given(total=st.integers(1, 100_000), fps=st.integers(1, 240))
def test_any_clip_gives_whole_latent_frames_in_order(total: int, fps: int) -> None:
    indices = frame_indices(total, fps)
    assert len(indices) % 4 == 1 and len(indices) <= 69
    assert indices == sorted(indices) and indices[0] == 0
    assert all(0 <= index < total for index in indices)
    if len(indices) > 1:
        assert indices[-1] == total - 1


@pytest.mark.parametrize("kind", SPEEDS)
def test_a_clip_is_read_frame_by_frame(kind: str, tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / f"clip.{kind}", ramp(48)))
    assert (clip.total, clip.fps) == (48, 24)
    assert clip.indices == frame_indices(48, 24)
    levels = [float(numpy.asarray(frame).mean()) for frame in clip.frames]
    assert max(abs(level - 5 * index) for level, index in zip(levels, clip.indices, strict=True)) < 6


def test_a_moving_gif_is_a_clip(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture) for picture in ramp(20)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, loop=0)
    clip = read_clip(path)
    assert clip.total == 20
    assert clip.frames[0].size == (64, 48)


def test_a_still_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "still.mp4", ramp(1)))
    assert clip.indices == [0]


def test_bad_videos_are_named(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", ramp(24)).read_bytes()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(numpy.zeros((1, 1024), numpy.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    cases = {
        "half.mp4": (whole[: len(whole) // 2], "not a video that can be read"),
        "text.mp4": (b"not a video " * 50, "not a video that can be read"),
        "empty.mp4": (b"", "not a video that can be read"),
        "sound.mp4": (None, "holds no video frames"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: {message}") as error:
            read_clip(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"gone\.mp4: no such video"):
        read_clip(tmp_path / "gone.mp4")
    with pytest.raises(DataError, match="0 frames"):
        frame_indices(0, 24)


def test_what_is_written_is_played_at_twelve_frames_a_second(tmp_path: Path) -> None:
    path = tmp_path / "made" / "clip.mp4"
    write_media(path, ramp(13))
    clip = read_clip(path)
    assert (clip.total, clip.fps) == (13, 12)
    assert clip.frames[0].size == (64, 48)
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_one_frame_is_written_as_a_picture(tmp_path: Path) -> None:
    write_media(tmp_path / "out.png", ramp(3)[2:])
    assert numpy.asarray(Image.open(tmp_path / "out.png")).tolist() == ramp(3)[2].tolist()


def test_a_name_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"13 frames make a video; wanted a name ending in \.mp4"):
        write_media(tmp_path / "clip.png", ramp(13))
    with pytest.raises(UsageError, match=r"one frame makes a picture; wanted a name ending in \.png"):
        write_media(tmp_path / "out.mp4", ramp(1))
    with pytest.raises(UsageError, match="47 x 64 px; MP4 wants even sides"):
        encode_mp4(ramp(5, height=47))
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(WorkbenchError, match=r"install lance-workbench\[video\]"):
        read_clip(tmp_path / "clip.mp4")
