"""Writing safetensors files larger than memory: the header first, then every tensor piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.source import DTYPE_BYTES
from core.files import disk_errors

ALIGNMENT = 8
"""The header is padded to this many bytes, as the format asks for."""


@dataclass(frozen=True)
class Slot:
    """A tensor to be written: its name, safetensors dtype name and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Values of the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.elements * DTYPE_BYTES[self.dtype]


def header(slots: Sequence[Slot]) -> bytes:
    """The header of a file that holds ``slots`` in this order, its length in front."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for slot in slots:
        entries[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [end, end + slot.nbytes],
        }
        end += slot.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_stream(path: Path, slots: Sequence[Slot], pieces: Callable[[Slot], Iterable[bytes]]) -> None:
    """Write ``slots`` to ``path``, which is not yet a final name.

    Args:
        pieces: the little-endian bytes of a tensor, in order, in pieces of any size.

    Raises:
        ValueError: the pieces of a tensor do not add up to its size.
        WorkbenchError: the disk is full, or the path cannot be written.
    """
    with disk_errors(path), path.open("wb") as stream:
        stream.write(header(slots))
        for slot in slots:
            written = sum(stream.write(piece) for piece in pieces(slot))
            if written != slot.nbytes:
                raise ValueError(f"{slot.name}: {written} bytes given, {slot.nbytes} announced")
