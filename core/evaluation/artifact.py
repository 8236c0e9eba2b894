"""What a bf16 evaluation keeps beside the database for others to be scored against: tensors by sample, versioned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from core.errors import DataError
from core.files import replacing
from core.formats.safetensors_file import save_tensors

_VERSION = "1"


def save_artifact(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], samples: Iterable[int]) -> None:
    """Write tensors named ``<sample>.<part>`` as an artifact of ``kind``, whole or not at all.

    Raises:
        WorkbenchError: the disk is full, or the path cannot be written.
    """
    metadata = {
        "format": f"lance-workbench {kind}",
        "version": _VERSION,
        "samples": json.dumps(sorted(samples)),
    }
    with replacing(path) as partial:
        save_tensors(tensors, partial, metadata)


class ArtifactFile:
    """A written artifact, read one tensor at a time.

    Raises:
        DataError: the file is missing, truncated or of another kind or version.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
        except Exception as error:  # safetensors raises its own and OSError alike
            raise DataError(f"{path}: cannot be read ({error}); run the baseline evaluation again") from error
        if metadata.get("format") != f"lance-workbench {kind}" or metadata.get("version") != _VERSION:
            raise DataError(f"{path}: no {kind} of version {_VERSION}; run the baseline evaluation again")
        self._keys = set(self._file.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def tensor(self, index: int, part: str) -> torch.Tensor:
        """``part`` of sample ``index``.

        Raises:
            DataError: the artifact does not have that sample.
        """
        if f"{index}.{part}" not in self._keys:
            raise DataError(f"{self.path}: sample {index} is missing; run the baseline evaluation again")
        tensor: torch.Tensor = self._file.get_tensor(f"{index}.{part}")
        return tensor
