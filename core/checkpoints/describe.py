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
from core.quantization.groups import Family

CONFIG_FILE = "llm_config.json"
HF_CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
TOKENIZER_CHOICES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A Hugging Face folder needs one of these."""
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
    family: Family
    """``lance``, or ``huggingface``: a causal LM that transformers loads."""
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
    """Generation defaults: upstream's, overridden by the folder's own; none for a causal LM."""
    config: dict[str, Any] = field(default_factory=dict)
    """The content of llm_config.json, or of a causal LM's config.json."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, wanted an object")
    return content


def own_record(folder: Path) -> dict[str, Any]:
    """The folder's ``lance_workbench.json``, or an empty object where there is none."""
    path = folder / OWN_FILE
    return read_json(path) if path.is_file() else {}


def family_of(folder: Path) -> Family:
    """The family of the checkpoint or variant in ``folder``, by its config file.

    Raises:
        CheckpointError: it has none, or one that is no causal LM's.
    """
    if (folder / CONFIG_FILE).is_file():
        return "lance"
    path = folder / HF_CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no checkpoint: neither {CONFIG_FILE} (a Lance) nor {HF_CONFIG_FILE} (a causal LM) is there; "
            "give the folder that holds one, or a name that `checkpoints list` shows"
        )
    if "model_type" not in read_json(path):
        raise CheckpointError(f"{path}: names no model_type, so it is no causal LM that transformers loads")
    return "huggingface"


def is_name(name: object) -> bool:
    """Whether a checkpoint may be called that: its variants and results get files and folders called by it."""
    return (
        isinstance(name, str)
        and name != ""
        and not name.startswith(".")
        and not set(name) & {"/", "\0", "\n"}
    )


def describe(folder: Path) -> CheckpointInfo:
    """Describe the checkpoint or variant in ``folder``.

    Raises:
        CheckpointError: the folder is no checkpoint, or its files are damaged.
    """
    folder = folder.resolve()
    source = TensorSource.open(folder)
    family = family_of(folder)
    config = read_json(folder / (CONFIG_FILE if family == "lance" else HF_CONFIG_FILE))
    own = own_record(folder)
    called = own.get("name") or _name(folder)
    if not is_name(called):
        raise CheckpointError(
            f"{folder / OWN_FILE}: name {called!r}: wanted one that a folder can have, without / and not hidden, for "
            "variants are called by it; change it there"
        )
    if not isinstance(own.get("defaults", {}), dict):
        raise CheckpointError(f"{folder / OWN_FILE}: defaults {own['defaults']!r}: wanted an object")
    quantization = None
    if (folder / HF_CONFIG_FILE).is_file():
        quantization = read_json(folder / HF_CONFIG_FILE).get("quantization_config")
    missing = _missing_of_lance(folder, source) if family == "lance" else _missing(folder)
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
        name=called,
        path=folder,
        kind="variant" if quantization else "checkpoint",
        family=family,
        parameters=parameters,
        tensors=len(source.entries),
        nbytes=source.nbytes,
        dtypes=dict(dtypes),
        missing=missing,
        fingerprint=sha256_text("\n".join(lines)),
        quantization=quantization,
        defaults=(DEFAULTS if family == "lance" else {}) | dict(own.get("defaults", {})),
        config=config,
    )


def _name(folder: Path) -> str:
    """The folder's name, not hidden; in the Hub's cache (``models--org--name/snapshots/commit``) the model's."""
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name.lstrip(".")


def _missing_of_lance(folder: Path, source: TensorSource) -> list[str]:
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    has_vision = any(key.startswith("vit_model.") for key in source.keys())  # noqa: SIM118 - not a dict
    if not has_vision and companion(folder, f"{VISION_FOLDER}/vit.safetensors") is None:
        missing.append(f"{VISION_FOLDER}/vit.safetensors")
    if all(companion(folder, name) is None for name in VAE_FILES):
        missing.append(VAE_FILES[0])
    return missing


def _missing(folder: Path) -> list[str]:
    if any((folder / name).is_file() for name in TOKENIZER_CHOICES):
        return []
    return [TOKENIZER_CHOICES[0]]
