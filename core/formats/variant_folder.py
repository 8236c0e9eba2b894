"""Writing a variant folder: sharded safetensors with an index, configs, provenance and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from core.checkpoints.describe import CONFIG_FILE, HF_CONFIG_FILE, OWN_FILE, family_of
from core.checkpoints.source import INDEX_FILE
from core.errors import CheckpointError
from core.files import disk_errors, replacing, sha256_file
from core.formats.safetensors_file import save_tensors
from core.host_memory import return_freed

MAX_SHARD_BYTES = 500_000_000
"""What a shard holds at most, unless a single unit exceeds it: all of it waits in memory until it is written."""

_COPIED = (".json", ".txt", ".jinja", ".model")
_OWN_NAMES = {HF_CONFIG_FILE, INDEX_FILE, OWN_FILE, "README.md", "recipe.toml"}


@dataclass(frozen=True)
class Written:
    """What a ``ShardWriter`` left behind."""

    size_bytes: int
    """Bytes of all tensors."""
    files: dict[str, str]
    """Shard name -> SHA-256."""


class ShardWriter:
    """Collects tensors unit by unit and writes a shard before another unit would make it too large."""

    def __init__(self, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = max_shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._held = 0
        """Bytes that wait."""
        self._shards: list[list[str]] = []
        self._size = 0

    def add(self, unit: Mapping[str, Tensor]) -> None:
        """Take a finished unit; tensors on the CPU."""
        size = sum(tensor.nbytes for tensor in unit.values())
        if self._held + size > self._limit:
            self._flush()
        self._waiting |= unit
        self._held += size
        self._size += size
        if self._held >= self._limit:
            self._flush()

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index:05d}.safetensors"

    def _flush(self) -> None:
        if self._waiting:
            names = sorted(self._waiting)
            tensors = {name: self._waiting[name] for name in names}
            save_tensors(tensors, self._part(len(self._shards)))
            self._shards.append(names)
            self._waiting, self._held = {}, 0
            del tensors
            return_freed()

    def finish(self) -> Written:
        """Write what waits, give the shards their final names and write the index."""
        self._flush()
        weight_map: dict[str, str] = {}
        files: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            final = f"model-{index + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(index).rename(self._folder / final)
            files[final] = sha256_file(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        body = {"metadata": {"total_size": self._size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self._folder / INDEX_FILE, body)
        return Written(self._size, files)


def replace_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Put other values (same shapes and dtypes) into the shards of a variant that nobody reads yet.

    Returns:
        SHA-256 of each shard that was written again, by its name.

    Raises:
        CheckpointError: no shard has one of the tensors, or has it in another shape or dtype.
        WorkbenchError: the disk is full, or the folder cannot be written.
    """
    written: dict[str, str] = {}
    left = dict(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            own = {name: left.pop(name) for name in file.keys() if name in left}  # noqa: SIM118 - not a dict
        if not own:
            continue
        held = load_file(path)
        for name, tensor in own.items():
            if (tensor.shape, tensor.dtype) != (held[name].shape, held[name].dtype):
                raise CheckpointError(
                    f"{path}: {name} is {held[name].dtype} {list(held[name].shape)}, not {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
        with replacing(path) as partial:
            save_tensors(held | own, partial)
        written[path.name] = sha256_file(path)
    if left:
        raise CheckpointError(f"{folder}: has no {next(iter(left))}")
    return written


def write_companions(
    folder: Path,
    source: Path,
    quantization: dict[str, Any],
    recipe_text: str,
    provenance: dict[str, Any],
    card: str,
    *,
    tied: bool = False,
) -> None:
    """Write everything beside the shards.

    The source's small files (tokenizer, generation defaults, ``llm_config.json``) are copied; config.json is its own
    (a Lance's ``llm_config.json``) with the ``quantization_config``, the dtype of what is not quantized, and whether
    embedding and head are one tensor (``tied``).
    """
    with disk_errors(folder):
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix in _COPIED and file.name not in _OWN_NAMES:
                shutil.copyfile(file, folder / file.name)
        name = CONFIG_FILE
        if family_of(source) == "huggingface":
            name = HF_CONFIG_FILE
            # transformers would otherwise lay the module out as compressed before it reads the files, which
            # compressed-tensors gets wrong for packed zeros; either way it computes with dense weights. Where there
            # are several formats it must do so, as it expands all weights by the first.
            quantization = quantization | {"dequantize": len(quantization["config_groups"]) == 1}
        config = json.loads((source / name).read_text(encoding="utf-8"))
        merged = config | {"tie_word_embeddings": tied, "quantization_config": quantization}
        for key in {"dtype", "torch_dtype"} & config.keys():
            merged[key] = "bfloat16"
        write_json(folder / HF_CONFIG_FILE, merged)
        write_record(folder, provenance)
        (folder / "recipe.toml").write_text(recipe_text, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_record(folder: Path, provenance: dict[str, Any]) -> None:
    """Write a variant's ``lance_workbench.json``."""
    with disk_errors(folder):
        write_json(folder / OWN_FILE, provenance)


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write a file of a folder that is not yet in its place."""
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
