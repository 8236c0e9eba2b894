"""What a folder is and what it lacks, from its headers and JSON files; no torch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER, companion
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.files import sha256_text

CONFIG_FILE = "llm_config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
OWN_FILE = "lance_workbench.json"

DEFAULTS: dict[str, Any] = {
    "resolution": "video_480p",
    "height": 768,
    "width": 768,
    "num_steps": 30,
    "timestep_shift": 3.5,
    "cfg_text_scale": 4.0,
    "rounding": "upstream",
}
"""What upstream's launch script passes, for a checkpoint that says nothing of its own."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint or variant folder in words."""

    name: str
    path: Path
    kind: str
    """``checkpoint`` or ``variant``."""
    parameters: int
    """Elements of all stored tensors; packed codes count as stored words."""
    tensors: int
    nbytes: int
    dtypes: dict[str, int]
    """Bytes by safetensors dtype name."""
    missing: list[str]
    """Files the folder needs and neither it nor its companions have."""
    fingerprint: str
    """SHA-256 over tensor names, shapes, dtypes, file sizes and the JSON files; ``verify`` hashes the contents."""
    quantization: dict[str, Any] | None
    """``quantization_config`` of a variant."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Generation defaults: upstream's, overridden by the folder's own."""
    config: dict[str, Any] = field(default_factory=dict)
    """The content of llm_config.json."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, wanted an object")
    return content


def own_record(folder: Path) -> dict[str, Any]:
    """The folder's ``lance_workbench.json``, or an empty object where there is none."""
    path = folder / OWN_FILE
    return read_json(path) if path.is_file() else {}


def describe(folder: Path) -> CheckpointInfo:
    """Describe the checkpoint or variant in ``folder``.

    Raises:
        CheckpointError: the folder is no checkpoint, or its files are damaged.
    """
    folder = folder.resolve()
    source = TensorSource.open(folder)
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise CheckpointError(f"{folder}: no Lance checkpoint: {CONFIG_FILE} is missing")
    config = read_json(config_path)
    own = own_record(folder)
    quantization = None
    if (folder / "config.json").is_file():
        quantization = read_json(folder / "config.json").get("quantization_config")
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    has_vision = any(key.startswith("vit_model.") for key in source.keys())  # noqa: SIM118 - not a dict
    if not has_vision and companion(folder, f"{VISION_FOLDER}/vit.safetensors") is None:
        missing.append(f"{VISION_FOLDER}/vit.safetensors")
    if all(companion(folder, name) is None for name in VAE_FILES):
        missing.append(VAE_FILES[0])
    dtypes: Counter[str] = Counter()
    parameters = 0
    for entry in source.entries.values():
        dtypes[entry.dtype] += entry.nbytes
        count = 1
        for size in entry.shape:
            count *= size
        parameters += count
    lines = [f"{name} {entry.dtype} {entry.shape}" for name, entry in sorted(source.entries.items())]
    files = sorted({entry.file for entry in source.entries.values()})
    lines += [f"{file.name} {file.stat().st_size}" for file in files]
    lines += [f"{path.name} {path.read_text(encoding='utf-8')}" for path in sorted(folder.glob("*.json"))]
    return CheckpointInfo(
        name=str(own.get("name") or folder.name),
        path=folder,
        kind="variant" if quantization else "checkpoint",
        parameters=parameters,
        tensors=len(source.entries),
        nbytes=source.nbytes,
        dtypes=dict(dtypes),
        missing=missing,
        fingerprint=sha256_text("\n".join(lines)),
        quantization=quantization,
        defaults=DEFAULTS | dict(own.get("defaults", {})),
        config=config,
    )
