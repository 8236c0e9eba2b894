"""Reading suite files: Lance's example JSON and JSON lines (SPEC section 5.5), and the workbench's own.

Lance's: an object of ``"000000.png": prompt`` (t2i), or of ``"0001": {interleave_array, element_dtype_array,
istarget_in_interleave}``; or one ``{"index": ..., "data": ...}`` a line. A question sample's text is
``[instruction, question, answer]``; a single string is a caption to be written without a question.
Ours: ``{"name", "task", "settings", "samples": [...]}``, whose pictures are drawn from a kind and a seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from core.errors import DataError, UsageError
from core.evaluation.suites import (
    GENERATION,
    TASKS,
    UNDERSTANDING,
    DrawnPicture,
    PictureFile,
    Sample,
    Settings,
    Suite,
)
from core.lance.prompts import INSTRUCTION_IMAGE

CAPTION_INSTRUCTIONS = (
    "Generate a detailed and accurate description of the image, including all the key moments and visual "
    "details.",
    "Write an in-depth depiction of the image, covering all its aspects.",
    "Write an exhaustive depiction of the given image, capturing its essence and key moments.",
    "Describe the key features of the input image, including color, shape, size, texture, objects, "
    "background.",
)
"""Upstream draws one of these at random for a caption; here the sample's key decides, so runs agree."""

_MOVING = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif"}
_PARTS = ("interleave_array", "element_dtype_array", "istarget_in_interleave")


def read(path: Path) -> Suite:
    """The suite in ``path``.

    Raises:
        DataError: no JSON, or of another shape (file, key, found and wanted are named); a picture is missing
        or none. UsageError: a task of Lance's that cannot be evaluated.
    """
    content = _parse(path)
    if isinstance(content, dict) and "samples" in content and "task" in content:
        return _own(path, content)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {_kind(content)}, wanted an object of samples by name")
    if not content:
        raise DataError(f"{path}: holds no samples")
    samples: list[Sample] = []
    seen: set[str] = set()
    for name, value in content.items():
        sample = _sample(path, name, value)
        if samples and sample.task != samples[0].task:
            raise DataError(
                f"{path}: {name} is a {sample.task} sample, {samples[0].key} a {samples[0].task} one; "
                "wanted one task a file"
            )
        if sample.key in seen:
            raise DataError(f"{path}: {name}: the key {sample.key} occurs twice")
        seen.add(sample.key)
        samples.append(sample)
    return Suite(path.stem, samples[0].task, tuple(samples), {}, path)


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8; wanted JSON or JSON lines") from error
    if path.suffix == ".jsonl":
        return _parse_lines(path, text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error}); JSON lines want the ending .jsonl") from error


def _parse_lines(path: Path, text: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(entry, dict) or "index" not in entry or "data" not in entry:
            raise DataError(f'{path}: line {number} is no {{"index": ..., "data": ...}}')
        name = str(entry["index"])
        if name in content:
            raise DataError(f"{path}: line {number}: the index {name} occurs twice")
        content[name] = entry["data"]
    return content


def _sample(path: Path, name: str, value: Any) -> Sample:
    key = PurePosixPath(name).stem
    if isinstance(value, str):
        if PurePosixPath(name).suffix.lower() in _MOVING:
            raise _unsupported(path, name, "t2v")
        return Sample(key, GENERATION, prompt=value)
    if not isinstance(value, dict):
        raise DataError(f"{path}: {name} is a {_kind(value)}, wanted a prompt or an object with {_PARTS[0]}")
    arrays = []
    for part in _PARTS:
        array = value.get(part)
        if not isinstance(array, list):
            raise DataError(f"{path}: {name}.{part} is a {_kind(array)}, wanted a list")
        arrays.append(array)
    items, kinds, targets = arrays
    if not len(items) == len(kinds) == len(targets) or not items:
        raise DataError(
            f"{path}: {name} lists {len(items)} items, {len(kinds)} types and {len(targets)} targets, "
            "wanted as many of each"
        )
    if wrong := [kind for kind in kinds if kind not in ("text", "image", "video")]:
        raise DataError(f"{path}: {name}.{_PARTS[1]} has {wrong[0]!r}, wanted text, image or video")
    texts = [item for item, kind in zip(items, kinds, strict=True) if kind == "text"]
    asked = any(target for target, kind in zip(targets, kinds, strict=True) if kind == "text")
    if not asked or "video" in kinds:
        found = "video" if "video" in kinds else "image"
        raise _unsupported(path, name, f"x2t_{found}" if asked else f"{found}_edit or i2v")
    if len(texts) != 1 or len(items) < 2:
        raise DataError(
            f"{path}: {name} has {len(texts)} texts and {len(items) - len(texts)} images, "
            "wanted images and one text"
        )
    question, instruction, expected = _question(path, name, key, texts[0])
    pictures = tuple(
        _picture(path, name, item) for item, kind in zip(items, kinds, strict=True) if kind == "image"
    )
    return Sample(key, UNDERSTANDING, question, instruction, expected, pictures)


def _question(path: Path, name: str, key: str, text: Any) -> tuple[str, str, str | None]:
    """Question, instruction and reference answer of an understanding sample's text."""
    if isinstance(text, str):
        choice = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(CAPTION_INSTRUCTIONS)
        return "", CAPTION_INSTRUCTIONS[choice], text or None
    if isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text):
        instruction, question, answer = text
        return question, instruction, answer or None
    raise DataError(
        f"{path}: {name} has the text {_kind(text)}, wanted [instruction, question, answer] or a caption"
    )


def _picture(path: Path, name: str, item: Any) -> PictureFile:
    """Find a picture as given, then from the file's folder, then by base name there and in its ``media``."""
    if not isinstance(item, str) or not item:
        raise DataError(f"{path}: {name} has the image {_kind(item)}, wanted a path")
    folder, base = path.parent, PurePosixPath(item).name
    places = [Path(item).expanduser(), folder / item, folder / base, folder / "media" / base]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            f"{path}: {name}: the image {item} is not there, nor is {base} in {folder} or {folder / 'media'}"
        )
    try:
        with Image.open(found) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{found}: not an image that can be read; wanted PNG, JPEG, WebP or GIF") from error
    return PictureFile(found.resolve())


def _own(path: Path, content: dict[str, Any]) -> Suite:
    task, entries, settings = content["task"], content["samples"], content.get("settings", {})
    if task not in TASKS:
        raise _unsupported(path, "task", str(task))
    if not isinstance(entries, list) or not entries or not isinstance(settings, dict):
        raise DataError(
            f"{path}: wanted a list of samples and an object of settings, "
            f"found {_kind(entries)} and {_kind(settings)}"
        )
    _check_settings(path, settings)
    wanted = (
        ("key", "kind", "seed", "question", "expected")
        if task == UNDERSTANDING
        else ("key", "prompt", "seed")
    )
    samples = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(part not in entry for part in wanted):
            raise DataError(f"{path}: samples[{number}] lacks one of {', '.join(wanted)}")
        if not isinstance(entry["seed"], int):
            raise DataError(
                f"{path}: samples[{number}].seed is a {_kind(entry['seed'])}, wanted a whole number"
            )
        if task == UNDERSTANDING:
            samples.append(
                Sample(
                    key=str(entry["key"]),
                    task=task,
                    question=str(entry["question"]),
                    instruction=str(entry.get("instruction", INSTRUCTION_IMAGE)),
                    expected=str(entry["expected"]),
                    pictures=(DrawnPicture(str(entry["kind"]), entry["seed"]),),
                )
            )
        else:
            samples.append(
                Sample(
                    key=str(entry["key"]),
                    task=task,
                    prompt=str(entry["prompt"]),
                    shape=str(entry.get("shape", "")),
                    colour=str(entry.get("colour", "")),
                    seed=entry["seed"],
                )
            )
    keys = [sample.key for sample in samples]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise DataError(f"{path}: the key {repeated[0]} occurs twice")
    return Suite(str(content.get("name", path.stem)), task, tuple(samples), settings, path)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    types = {entry.name: entry.type for entry in dataclasses.fields(Settings)}
    for name, value in settings.items():
        if name not in types:
            raise DataError(f"{path}: settings.{name}: unknown; known are {', '.join(types)}")
        wanted: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(types[name]), (str,))
        if not isinstance(value, wanted):
            raise DataError(f"{path}: settings.{name} is a {_kind(value)}, wanted {types[name]}")


def _unsupported(path: Path, name: str, task: str) -> UsageError:
    return UsageError(
        f"{path}: {name} is of the task {task}, which cannot be evaluated yet; wanted {' or '.join(TASKS)}"
    )


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing value"
    if isinstance(value, list):
        return f"list of {len(value)}"
    return {dict: "object", str: "string", bool: "boolean"}.get(type(value), "number")
