"""Checking a checkpoint to the last byte: strict keys, shapes, finite values, hashes; its companion files too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import OWN_FILE, CheckpointInfo, describe, own_record, read_json
from core.checkpoints.fetch import RECORD_FILE
from core.checkpoints.layout import Layout, layout_of, packed_weights
from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER, companion
from core.checkpoints.source import TensorSource, not_finite, weight_files
from core.errors import CheckpointError
from core.files import sha256_file


@dataclass(frozen=True)
class Verification:
    """What was found. ``problems`` is empty for a sound checkpoint."""

    info: CheckpointInfo
    problems: list[str]
    hashes: dict[str, str]
    """SHA-256 by file name."""


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read every tensor and compare names and shapes with what its config asks for; hash every file of weights, and
    compare with what a fetch, or the making of a variant, said it should be.

    ``progress`` is called with (tensors done, tensors in all).

    Raises:
        CheckpointError: the folder is no checkpoint at all, or a causal LM whose decoder is not of a structure that is
            known; lesser faults are collected.
    """
    info = describe(folder)
    source = TensorSource.open(folder)
    layout = layout_of(folder)
    problems = [f"{name} is missing" for name in info.missing]
    # A variant stores codes in place of these weights; its own reader accounts for them when it is loaded.
    packed = packed_weights(source) if info.kind == "variant" else set()
    problems += layout.problems(source, packed)
    for done, name in enumerate(source.keys()):
        problems += _not_finite(source, name)
        if progress is not None:
            progress(done + 1, len(source.entries))
    files = weight_files(folder)
    if info.family == "lance":
        tower = companion(folder, f"{VISION_FOLDER}/vit.safetensors")
        if tower is not None and not any(layout.optional.match(name) for name in source.keys()):  # noqa: SIM118
            problems += _tower(tower, layout)
            files.append(tower)
        vae = next((path for name in VAE_FILES if (path := companion(folder, name)) is not None), None)
        if vae is not None:
            problems += _vae(vae)
            files.append(vae)
    hashes = {file.name: sha256_file(file) for file in files}
    problems += _remade(folder, files, hashes)
    problems += _changed(folder, files, hashes)
    return Verification(info, problems, hashes)


def _not_finite(source: TensorSource, name: str) -> Iterator[str]:
    try:
        source.get(name, finite=True)
    except CheckpointError as error:
        yield str(error)


def _tower(path: Path, layout: Layout) -> Iterator[str]:
    """What is wrong with a vision tower in a file of its own, where its tensors have bare names."""
    try:
        source = TensorSource.open(path)
    except CheckpointError as error:
        yield str(error)
        return
    wanted = {
        name[found.end() :]: shape
        for name, shape in layout.shapes.items()
        if (found := layout.optional.match(name))
    }
    for name, shape in wanted.items():
        if name not in source:
            yield f"{path}: {name} is missing"
        elif source.shape(name) != shape:
            yield f"{path}: {name} has shape {list(source.shape(name))}, wanted {list(shape)} by its config.json"
    for name in source.keys():  # noqa: SIM118
        if name not in wanted:
            yield f"{path}: {name} is no tensor of the vision tower; fetch it again"
        yield from _not_finite(source, name)


def _vae(path: Path) -> Iterator[str]:
    from core.lance.vae import read_vae_tensors

    try:
        tensors = read_vae_tensors(path)
    except CheckpointError as error:
        yield str(error)
        return
    for name, tensor in tensors.items():
        if not_finite(tensor):
            yield f"{path}: {name} {list(tensor.shape)} holds values that are NaN or infinite; fetch it again"


def _remade(folder: Path, files: list[Path], hashes: dict[str, str]) -> Iterator[str]:
    """Files that are not what the making of a variant recorded in it."""
    made = own_record(folder).get("files")
    for file in files:
        wanted = made.get(file.name) if isinstance(made, dict) and file.parent == folder else None
        if wanted not in (None, hashes[file.name]):
            yield (
                f"{file}: SHA-256 is {hashes[file.name][:12]}…, wanted {str(wanted)[:12]}… by {OWN_FILE}: it was "
                "changed since it was made; make the variant again"
            )


def _changed(folder: Path, files: list[Path], hashes: dict[str, str]) -> Iterator[str]:
    """Files that are not what a fetch recorded beside the checkpoint."""
    for place in (folder.resolve(), folder.resolve().parent):
        if not (place / RECORD_FILE).is_file():
            continue
        known = read_json(place / RECORD_FILE).get("files", {})
        for file in files:
            path = file.resolve()
            wanted = known.get(path.relative_to(place).as_posix(), {}) if path.is_relative_to(place) else {}
            if wanted.get("sha256") not in (None, hashes[file.name]):
                yield (
                    f"{file}: SHA-256 is {hashes[file.name][:12]}…, wanted {wanted['sha256'][:12]}… as it was "
                    "fetched; fetch it again"
                )
