"""Checking a checkpoint to the last byte: strict keys, shapes, finite values, hashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.source import TensorSource, weight_files
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
    """Read every tensor and compare names and shapes with what llm_config.json asks for.

    ``progress`` is called with (tensors done, tensors in all).

    Raises:
        CheckpointError: the folder is no checkpoint at all; lesser faults are collected.
    """
    from core.lance.config import LanceConfig
    from core.lance.decoder import target_names
    from core.lance.loading import IGNORED, VISION_PREFIX, empty_lance

    info = describe(folder)
    source = TensorSource.open(folder)
    config = LanceConfig.from_folder(folder)
    wanted = {name: tuple(p.shape) for name, p in empty_lance(config).named_parameters()}
    # A variant stores codes in place of these weights; its own reader accounts for them when it is loaded.
    packed = (
        {f"{name}.weight" for name in target_names(config.num_layers)} if info.kind == "variant" else set()
    )
    problems = [f"{name} is missing" for name in info.missing]
    bundled = any(key.startswith(VISION_PREFIX) for key in source.keys())  # noqa: SIM118 - not a dict
    for name in wanted:
        if name not in source and name not in packed and (bundled or not name.startswith(VISION_PREFIX)):
            problems.append(f"{name} is missing")
    for done, name in enumerate(source.keys()):
        if name in wanted:
            if source.shape(name) != wanted[name]:
                problems.append(
                    f"{name} has shape {list(source.shape(name))}, wanted {list(wanted[name])} by llm_config.json"
                )
        elif name not in IGNORED and name.rpartition(".")[0] + ".weight" not in packed:
            problems.append(f"{name} is no tensor of a Lance")
        try:
            source.get(name, finite=True)
        except CheckpointError as error:
            problems.append(str(error))
        if progress is not None:
            progress(done + 1, len(source.entries))
    hashes = {file.name: sha256_file(file) for file in weight_files(folder)}
    return Verification(info, problems, hashes)
