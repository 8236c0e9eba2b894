"""Reading safetensors checkpoints tensor by tensor, one file or sharded, without loading a whole file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHT_FILES = ("model.safetensors", "ema.safetensors")
"""Single-file names upstream looks for, in its order."""

INDEX_FILE = "model.safetensors.index.json"

PIECE = 1 << 22
"""Values that are looked at together."""

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes an element takes, by the dtype names of the safetensors format."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""Of numbers that are weights as they stand."""

FLOAT8 = "F8_E4M3"
"""Of codes that are weights only with their scales."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its file, safetensors dtype name and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file from its header alone.

    Checks that every tensor's bytes lie inside the file, so a truncated download is found before anything is loaded.
    Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path}: truncated: its header needs {length + 8} bytes, the file has {size}; fetch it again"
                )
            header: dict[str, Any] = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no safetensors file: its header is no JSON; fetch it again"
        ) from error
    entries: dict[str, TensorEntry] = {}
    end = 8 + length
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
            first, last = (int(n) for n in fields["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the header entry of {name} is damaged; fetch the file again"
            ) from error
        if dtype not in DTYPE_BYTES:
            raise CheckpointError(f"{path}: {name} has dtype {dtype}, known are {', '.join(DTYPE_BYTES)}")
        entry = TensorEntry(path, dtype, shape)
        if last - first != entry.nbytes:
            raise CheckpointError(
                f"{path}: {name} {list(shape)} {dtype} takes {last - first} bytes, wanted {entry.nbytes}; "
                "fetch the file again"
            )
        end = max(end, 8 + length + last)
        entries[name] = entry
    if end > size:
        raise CheckpointError(
            f"{path}: truncated: its tensors end at byte {end}, the file has {size}; fetch it again"
        )
    return entries


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights, in order.

    Raises:
        CheckpointError: the folder holds none, or its index names a file that is not there.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{index}: no index of shards: wanted an object with a weight_map"
            ) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index}: names {missing[0]}, which is not in the folder; fetch it again")
        return [folder / name for name in names]
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(
        f"{folder}: no checkpoint: wanted {INDEX_FILE}, {' or '.join(WEIGHT_FILES)} in it; fetch it again"
        if folder.is_dir()
        else f"{folder}: no such folder; `checkpoints list` shows what is known"
    )


def not_finite(tensor: torch.Tensor) -> int:
    """How many values of ``tensor`` are NaN or infinite, looked at in pieces: an embedding is a gigabyte."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    return sum(_not_finite(piece) for piece in tensor.flatten().split(PIECE))


def _not_finite(piece: torch.Tensor) -> int:
    if piece.dtype.itemsize == 1:
        # Eight-bit floats have no least and greatest in torch.
        piece = piece.float()
    # Both are NaN where any value is. This reads the piece once and makes nothing; counting takes sixty times as long.
    least, greatest = piece.aminmax()
    if bool(least.isfinite()) and bool(greatest.isfinite()):
        return 0
    return int((~piece.float().isfinite()).sum())


class TensorSource:
    """The tensors of a checkpoint by name, read one at a time.

    Opening reads headers only. ``get`` maps the tensor's pages; nothing of a file stays in memory once its tensor is
    dropped.
    """

    def __init__(self, entries: dict[str, TensorEntry], place: Path) -> None:
        self.entries = entries
        self.place = place
        self._handles: dict[Path, Any] = {}

    @classmethod
    def open(cls, place: Path) -> TensorSource:
        """Open a checkpoint folder or a single safetensors file.

        Raises:
            CheckpointError: missing, truncated or damaged files, or one name in two shards.
        """
        entries: dict[str, TensorEntry] = {}
        for file in [place] if place.is_file() else weight_files(place):
            for name, entry in read_header(file).items():
                if name in entries:
                    raise CheckpointError(
                        f"{name}: stands in {entries[name].file} and in {file}; remove one of them"
                    )
                entries[name] = entry
        return cls(entries, place)

    def keys(self) -> list[str]:
        """The tensor names, in file order."""
        return list(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def entry(self, name: str) -> TensorEntry:
        """The header entry of ``name``.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self.place}: {name} is missing") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of ``name``."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """safetensors dtype name of ``name``, for example ``"BF16"``."""
        return self.entry(name).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.entries.values())

    def get(self, name: str, *, finite: bool = False) -> torch.Tensor:
        """The tensor ``name`` on the CPU in its stored dtype.

        Args:
            name: the tensor's name.
            finite: also check that it holds no NaN and no infinity.

        Raises:
            CheckpointError: there is no such tensor, or it is not finite.
        """
        from safetensors import safe_open

        entry = self.entry(name)
        if entry.file not in self._handles:
            self._handles[entry.file] = safe_open(entry.file, framework="pt")
        tensor: torch.Tensor = self._handles[entry.file].get_tensor(name)
        if finite and (bad := not_finite(tensor)):
            raise CheckpointError(
                f"{entry.file}: {name} {list(entry.shape)} holds {bad} values that are NaN or infinite; fetch it again"
            )
        return tensor
