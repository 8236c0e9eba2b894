"""Writing a safetensors file the way the rest of the library expects files to be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from core.files import disk_errors


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors (CPU) to ``path``, which is not yet a final name.

    The library reports a full disk as an error of its own and makes files that only their owner can read;
    both are put right.

    Raises:
        WorkbenchError: the disk is full, or the path cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with disk_errors(path):
        try:
            save_file(contiguous, path, metadata=dict(metadata or {"format": "pt"}))
        except SafetensorError as error:
            code = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
            raise OSError(code, str(error)) from error
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)
