"""Clips: which frames Lance looks at, reading them from any container, and writing what it made as MP4.

PyAV (FFmpeg's libraries) is imported when a clip is first read or written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image

from core.errors import DataError, UsageError, WorkbenchError
from core.files import write_bytes

if TYPE_CHECKING:
    import torch

CLIP_SECONDS = 6.0
"""A longer clip is looked at more sparsely, from its first to its last frame."""

CLIP_FPS = 12
"""Frames per second that are looked at, and that a generated clip is played with."""

FALLBACK_FPS = 24
"""Taken where a container does not say how fast its frames follow each other."""

CODEC = "libx264"
CODEC_OPTIONS = {"crf": "18", "preset": "medium"}
"""Visually lossless, so that what is judged is the model and not the encoder."""

Pixels = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]


@dataclass(frozen=True)
class Clip:
    """The frames of a video that Lance looks at."""

    frames: list[Image.Image]
    """RGB, all of one size; 4 k + 1 of them, a frame repeated where the video has fewer."""
    indices: list[int]
    """Which of the video's frames they are."""
    total: int
    """Frames of the whole video."""
    fps: int


def frame_indices(total: int, fps: int) -> list[int]:
    """The frames upstream takes from a video of ``total`` frames: 4 k + 1 of them, from the first to the last.

    About twelve a second over at most six seconds, evenly spaced and truncated to whole numbers; a multiple of four
    loses a whole latent frame, as upstream has it (72 become 69). A video too short for one gives its first frame.

    Raises:
        DataError: no frames, or a rate below one.
    """
    if total < 1 or fps < 1:
        raise DataError(f"a video of {total} frames at {fps} frames per second; wanted at least one of each")
    wanted = round(min(total / fps, CLIP_SECONDS) * CLIP_FPS)
    wanted = 4 * (wanted // 4) + 1 if wanted % 4 else 4 * (wanted // 4) - 3
    count = max(1, 4 * (wanted // 4) + 1)
    return [int(place) for place in numpy.linspace(0, total - 1, count)]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise WorkbenchError(
            "reading and writing video needs PyAV; install lance-workbench[video]"
        ) from error
    return av


def read_clip(path: Path) -> Clip:
    """Read the frames of ``path`` that Lance looks at: MP4, WebM, MOV, GIF and whatever else FFmpeg decodes.

    Frames are counted from the packets (containers need not say, or say wrongly) and decoded in order; only the
    chosen ones are kept. Frames that a container marks as turned are turned upright.

    Raises:
        DataError: missing, no video, no frames, damaged, or of changing size.
        WorkbenchError: PyAV is not installed.
    """
    av = _av()
    try:
        total, fps = _measure(av, path)
        indices = frame_indices(total, fps)
        frames, decoded = _decode(av, path, indices)
        if len(frames) < len(set(indices)) and decoded:
            # More packets than frames: some only carry parameters. Choose again among those that are there.
            total, indices = decoded, frame_indices(decoded, fps)
            frames, _ = _decode(av, path, indices)
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not frames:
        raise DataError(f"{path}: holds no video frames that can be decoded; wanted at least one")
    first = frames[indices[0]]
    for index, frame in frames.items():
        if frame.size != first.size:
            raise DataError(
                f"{path}: frame {index} is {frame.width} x {frame.height} px, the first one {first.width} x "
                f"{first.height}; encode it at one size"
            )
    return Clip([frames[index] for index in indices], indices, total, fps)


def clip_shape(path: Path) -> tuple[int, int, int]:
    """Width and height of a video's frames and how many Lance looks at, from its headers; no frame is decoded.

    Raises:
        DataError: missing, no video, or without frames.
        WorkbenchError: PyAV is not installed.
    """
    av = _av()
    try:
        total, fps = _measure(av, path)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return int(stream.width), int(stream.height), len(frame_indices(total, fps))
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path}: not a video that can be read ({reason}); wanted MP4, WebM or GIF")


def _measure(av: Any, path: Path) -> tuple[int, int]:
    """Packets of the first video stream and its rounded frame rate.

    Raises:
        DataError: no such file, or no video frames in it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such video; give the path of one that is there")
    with av.open(str(path)) as container:
        streams = container.streams.video
        rate = streams[0].average_rate if streams else None
        packets = sum(1 for packet in container.demux(streams[0]) if packet.size) if streams else 0
    if not packets:
        raise DataError(f"{path}: holds no video frames; wanted at least one")
    # A slide show of less than a frame in two seconds would round to zero.
    return packets, max(1, round(rate)) if rate else FALLBACK_FPS


def _decode(av: Any, path: Path, indices: Sequence[int]) -> tuple[dict[int, Image.Image], int]:
    """The frames at ``indices`` by index, and how many frames were decoded to find them."""
    wanted, last = set(indices), max(indices)
    found: dict[int, Image.Image] = {}
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if count in wanted:
                picture: Image.Image = frame.to_image()
                found[count] = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
            count += 1
            if count > last:
                break
    return found, count


def encode_mp4(frames: torch.Tensor | Pixels, fps: int = CLIP_FPS) -> bytes:
    """An MP4 (H.264, 4:2:0) of frames uint8 [T, H, W, 3].

    Raises:
        UsageError: odd sides, which the format does not have.
        WorkbenchError: PyAV is not installed, or comes without the encoder.
    """
    av = _av()
    pixels = numpy.asarray(frames)
    height, width = pixels.shape[1:3]
    if height % 2 or width % 2:
        raise UsageError(f"frames of {height} x {width} px; MP4 wants even sides")
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream(CODEC, rate=Fraction(fps), options=CODEC_OPTIONS)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for picture in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    except (av.codec.codec.UnknownCodecError, av.FFmpegError) as error:
        raise WorkbenchError(
            f"{CODEC}: PyAV {av.__version__} cannot encode with it ({error}); install lance-workbench[video]"
        ) from error
    return buffer.getvalue()


PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's name of the format by the ending of a file's name."""


def check_name(path: Path, count: int) -> None:
    """Check that a file's name ends as ``count`` frames are written.

    Raises:
        UsageError: it does not.
    """
    suffix = path.suffix.lower()
    if count > 1 and suffix != ".mp4":
        raise UsageError(f"{path}: {count} frames make a video; wanted a name ending in .mp4")
    if count == 1 and suffix not in PICTURES:
        raise UsageError(f"{path}: one frame makes a picture; wanted a name ending in {', '.join(PICTURES)}")


def write_media(path: Path, frames: torch.Tensor | Pixels) -> None:
    """Write frames uint8 [T, H, W, 3] to ``path`` whole or not at all.

    One frame makes a picture of the kind the name ends in (``.png``, ``.jpg``, ``.webp``), more make an MP4 of 12
    frames per second.

    Raises:
        UsageError: a name that ends otherwise.
        WorkbenchError: the path cannot be written.
    """
    check_name(path, len(frames))
    if len(frames) > 1:
        write_bytes(path, encode_mp4(frames))
        return
    kind = PICTURES[path.suffix.lower()]
    buffer = io.BytesIO()
    options = {} if kind == "PNG" else {"quality": 95}
    Image.fromarray(numpy.asarray(frames[0])).save(buffer, kind, **options)
    write_bytes(path, buffer.getvalue())
