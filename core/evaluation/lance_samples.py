"""Samples in Lance's own format (SPEC section 5.5), one value of its example files each.

``"000000.png": prompt`` is a picture to draw, ``"000000.mp4": prompt`` a clip; ``{interleave_array,
element_dtype_array, istarget_in_interleave}`` is a question about pictures or a clip if its text is the target, and
else a source and what to make of it. A question's text is ``[instruction, question, answer]``; a single string is a
caption to be written without a question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from core.errors import DataError, UsageError, WorkbenchError
from core.evaluation.samples import GENERATION, TEXT, UNDERSTANDING, Sample
from core.evaluation.visuals import ClipFile, PictureFile
from core.files import expanded
from core.lance.buckets import check_shape
from core.lance.prompts import check_words

CAPTION_INSTRUCTIONS = (
    "Generate a detailed and accurate description of the {medium}, including all the key moments and visual "
    "details.",
    "Write an in-depth depiction of the {medium}, covering all its aspects.",
    "Write an exhaustive depiction of the given {medium}, capturing its essence and key moments.",
    "Describe the key features of the input {medium}, including color, shape, size, texture, objects, "
    "background.",
)
"""Upstream draws one of these at random for a caption; here the sample's key decides, so runs agree."""

INSTRUCTION_TEXT = "You are a helpful assistant."
"""The system's turn of a question that has none of its own and shows nothing."""

_MOVING = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif"}
_PARTS = ("interleave_array", "element_dtype_array", "istarget_in_interleave")
_OF_STRINGS = (GENERATION, "t2v", TEXT)


def read_sample(path: Path, name: str, value: Any, task: str | None) -> Sample:
    """The sample called ``name`` in ``path``; ``task`` decides where the format leaves it open.

    Raises:
        DataError: another shape, a missing or unreadable picture or clip, special tokens in the words; file and name
            are in the message.
        UsageError: a picture and a text could be of two tasks.
    """
    key = PurePosixPath(name).stem
    if isinstance(value, str):
        check_text(path, name, value)
        if task == TEXT:
            return Sample(key, TEXT, value, INSTRUCTION_TEXT)
        moving = PurePosixPath(name).suffix.lower() in _MOVING
        guessed = "t2v" if moving else GENERATION
        return Sample(key, task if task in _OF_STRINGS else guessed, prompt=value)
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: {name} is a {kind_of(value)}, wanted a prompt or an object with {_PARTS[0]}"
        )
    arrays = []
    for part in _PARTS:
        array = value.get(part)
        if not isinstance(array, list):
            raise DataError(f"{path}: {name}.{part} is a {kind_of(array)}, wanted a list")
        arrays.append(array)
    items, kinds, targets = arrays
    if not len(items) == len(kinds) == len(targets) or not items:
        raise DataError(
            f"{path}: {name} lists {len(items)} items, {len(kinds)} types and {len(targets)} targets, "
            "wanted as many of each"
        )
    if wrong := [kind for kind in kinds if kind not in ("text", "image", "video")]:
        raise DataError(f"{path}: {name}.{_PARTS[1]} has {wrong[0]!r}, wanted text, image or video")
    texts, images, videos = (
        [item for item, kind in zip(items, kinds, strict=True) if kind == wanted]
        for wanted in ("text", "image", "video")
    )
    if len(texts) != 1 or (images and videos):
        raise DataError(
            f"{path}: {name} has {len(texts)} texts, {len(images)} images and {len(videos)} videos, "
            "wanted one text, and images or videos"
        )
    pictures = tuple(picture_file(path, name, item) for item in images)
    clips = tuple(clip_file(path, name, item) for item in videos)
    if any(target for target, kind in zip(targets, kinds, strict=True) if kind == "text"):
        asked = "x2t_video" if videos else UNDERSTANDING if images else TEXT
        question, instruction, expected = _question(path, name, key, texts[0], asked)
        return Sample(key, asked, question, instruction, expected, pictures, clips=clips)
    if len(images) + len(videos) != 1 or not isinstance(texts[0], str):
        raise DataError(
            f"{path}: {name} has {len(images) + len(videos)} sources and the text {kind_of(texts[0])}, "
            "wanted one image or video and what to make of it"
        )
    check_text(path, name, texts[0])
    made = "video_edit" if videos else _image_task(path, name, task)
    return Sample(key, made, prompt=texts[0], pictures=pictures, clips=clips)


def _image_task(path: Path, name: str, task: str | None) -> str:
    """A picture and a text are i2v or image_edit: whichever is asked for, or what the file's name says."""
    if task in ("i2v", "image_edit"):
        return task
    for part, found in (("i2v", "i2v"), ("image_to_video", "i2v"), ("edit", "image_edit")):
        if part in path.stem:
            return found
    raise UsageError(
        f"{path}: {name} is a picture and a text, which may be i2v or image_edit; name the file i2v_... or "
        'image_edit_..., or write {"task": "i2v", "samples": {...}} around its samples'
    )


def _question(path: Path, name: str, key: str, text: Any, task: str) -> tuple[str, str, str | None]:
    """Question, instruction and reference answer of an understanding sample's text."""
    if isinstance(text, str):
        if task == TEXT:
            check_text(path, name, text)
            return text, INSTRUCTION_TEXT, None
        choice = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(CAPTION_INSTRUCTIONS)
        medium = "video" if task == "x2t_video" else "image"
        return "", CAPTION_INSTRUCTIONS[choice].format(medium=medium), text or None
    if isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text):
        instruction, question, answer = text
        check_text(path, name, instruction, question)
        return question, instruction, answer or None
    raise DataError(
        f"{path}: {name} has the text {kind_of(text)}, wanted [instruction, question, answer] or a caption"
    )


def check_text(path: Path, name: str, *words: str) -> None:
    """Refuse special tokens in a sample's words.

    Raises:
        DataError: names file, sample and token.
    """
    try:
        for text in words:
            check_words(text)
    except UsageError as error:
        raise DataError(f"{path}: {name}: {error}") from error


def picture_file(path: Path, name: str, item: Any) -> PictureFile:
    """Find a picture as given, then from the file's folder, then by base name there and in its ``media``.

    Raises:
        DataError: it is nowhere, no picture, or too narrow to crop.
    """
    found = _find(path, name, item, "image")
    try:
        with Image.open(found) as image:
            size = image.size
            image.verify()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{found}: not an image that can be read; wanted PNG, JPEG, WebP or GIF") from error
    _check_size(found, size)
    return PictureFile(found.resolve())


def clip_file(path: Path, name: str, item: Any) -> ClipFile:
    """Find a clip where ``picture_file`` looks for pictures.

    Raises:
        DataError: it is nowhere, no video, without frames, or too narrow to crop.
        WorkbenchError: PyAV is not installed.
    """
    from core.lance.video import clip_shape

    found = _find(path, name, item, "video")
    _check_size(found, clip_shape(found))
    return ClipFile(found.resolve())


def _check_size(found: Path, size: Sequence[int]) -> None:
    try:
        check_shape((size[0], size[1]))
    except WorkbenchError as error:
        raise DataError(f"{found}: {error}") from error


def _find(path: Path, name: str, item: Any, noun: str) -> Path:
    if not isinstance(item, str) or not item:
        raise DataError(f"{path}: {name} has the {noun} {kind_of(item)}, wanted a path")
    folder, base = path.parent, PurePosixPath(item).name
    places = [expanded(item), folder / item, folder / base, folder / "media" / base]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            f"{path}: {name}: the {noun} {item} is not there, nor is {base} in {folder} or {folder / 'media'}; "
            "put it there, or correct its path"
        )
    return found


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing value"
    if isinstance(value, list):
        return f"list of {len(value)}"
    return {dict: "object", str: "string", bool: "boolean"}.get(type(value), "number")
