"""Suites in the workbench's own format: ``{"name", "task", "description", "settings", "samples"}``.

``samples`` is a list whose pictures and clips are drawn from seeds, or an object of samples in Lance's format, which
then need not tell their task.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from core.errors import DataError, UsageError
from core.evaluation.lance_samples import INSTRUCTION_TEXT, check_text, kind_of, read_sample
from core.evaluation.samples import ANSWERING, GENERATION, TASKS, TEXT, UNDERSTANDING, Sample, Settings, Suite
from core.evaluation.visuals import CAPTIONED, DrawnClip, DrawnPicture
from core.lance.prompts import INSTRUCTION_IMAGE, INSTRUCTION_VIDEO

_WANTED = {
    UNDERSTANDING: ("key", "kind", "seed", "question", "expected"),
    "x2t_video": ("key", "drawing", "question"),
    TEXT: ("key", "question"),
    GENERATION: ("key", "prompt", "seed"),
    "t2v": ("key", "prompt", "seed"),
    "i2v": ("key", "prompt", "seed", "drawing"),
    "image_edit": ("key", "prompt", "seed", "drawing"),
    "video_edit": ("key", "prompt", "seed", "drawing"),
}
"""What a drawn sample of each task has; ``drawing`` is the seed of the picture or clip, ``seed`` of the noise."""

_INSTRUCTIONS = {UNDERSTANDING: INSTRUCTION_IMAGE, "x2t_video": INSTRUCTION_VIDEO, TEXT: INSTRUCTION_TEXT}


def read_own(path: Path, content: dict[str, Any]) -> Suite:
    """The suite that ``content`` of ``path`` describes.

    Raises:
        DataError: another shape, named by file and key.
        UsageError: an unknown task.
    """
    task, entries, settings = content["task"], content["samples"], content.get("settings", {})
    if task not in TASKS:
        raise UsageError(f"{path}: task {task}: no such task; known are {', '.join(TASKS)}")
    if not isinstance(entries, list | dict) or not entries or not isinstance(settings, dict):
        raise DataError(
            f"{path}: wanted samples in a list or an object, and an object of settings, "
            f"found {kind_of(entries)} and {kind_of(settings)}"
        )
    _check_settings(path, settings)
    if isinstance(entries, dict):
        samples = [read_sample(path, name, value, task) for name, value in entries.items()]
        if other := [sample for sample in samples if sample.task != task]:
            raise DataError(f"{path}: {other[0].key} is a {other[0].task} sample, wanted {task}")
    else:
        samples = [_drawn(path, task, number, entry) for number, entry in enumerate(entries)]
    keys = [sample.key for sample in samples]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise DataError(f"{path}: the key {repeated[0]} occurs twice")
    name, description = str(content.get("name", path.stem)), str(content.get("description", ""))
    return Suite(name, task, tuple(samples), settings, path, description)


def _drawn(path: Path, task: str, number: int, entry: Any) -> Sample:
    wanted = _WANTED[task]
    if not isinstance(entry, dict) or any(part not in entry for part in wanted):
        raise DataError(f"{path}: samples[{number}] lacks one of {', '.join(wanted)}")
    for part in {"seed", "drawing"} & set(wanted):
        if not isinstance(entry[part], int):
            raise DataError(
                f"{path}: samples[{number}].{part} is a {kind_of(entry[part])}, wanted a whole number"
            )
    texts = {part: str(entry[part]) for part in ("question", "prompt", "instruction") if part in entry}
    check_text(path, f"samples[{number}]", *texts.values())
    key = str(entry["key"])
    clips = (DrawnClip(entry["drawing"]),) if task in ("x2t_video", "video_edit") else ()
    if task in ANSWERING:
        return Sample(
            key=key,
            task=task,
            question=texts["question"],
            instruction=texts.get("instruction", _INSTRUCTIONS[task]),
            expected=str(entry["expected"]) if "expected" in entry else None,
            pictures=(DrawnPicture(str(entry["kind"]), entry["seed"]),) if task == UNDERSTANDING else (),
            clips=clips,
        )
    return Sample(
        key=key,
        task=task,
        prompt=texts["prompt"],
        pictures=(DrawnPicture(CAPTIONED, entry["drawing"]),) if task in ("i2v", "image_edit") else (),
        clips=clips,
        shape=str(entry.get("shape", "")),
        colour=str(entry.get("colour", "")),
        seed=entry["seed"],
    )


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    types = {entry.name: entry.type for entry in dataclasses.fields(Settings)}
    for name, value in settings.items():
        if name not in types:
            raise DataError(f"{path}: settings.{name}: unknown; known are {', '.join(types)}")
        wanted: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(types[name]), (str,))
        if not isinstance(value, wanted):
            raise DataError(f"{path}: settings.{name} is a {kind_of(value)}, wanted {types[name]}")
