"""Files appear under their final name whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from core.errors import WorkbenchError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def expanded(path: str | Path) -> Path:
    """A path with ``~`` and ``~user`` replaced; one of a user that there is not stays as it is, and is not found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises there


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder that can be looked into; False where that may not be known."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors met while writing ``path`` into one-line errors that name it.

    Raises:
        WorkbenchError: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise WorkbenchError(
                f"{path}: no space left on the device; nothing was written. Free some space and run it again"
            ) from error
        raise WorkbenchError(f"{path}: cannot be written ({error.strerror or error})") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file to; on success it is synced and renamed over ``path``."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _fsync(partial)
            partial.replace(path)
            _fsync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder beside ``path``; on success its files are synced and it takes the name ``path``.

    A folder that stood there is moved aside first and removed last, so a kill leaves the old one or the new one. It is
    the caller who knows that it may go.

    Raises:
        WorkbenchError: a file is in the way, the disk is full, or the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        if path.exists() and not path.is_dir():
            raise WorkbenchError(f"{path}: a file, wanted a place for a folder; choose another")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _fsync(file)
            _fsync(partial)
            retired = path.with_name(f".{path.name}.retired-{os.getpid()}")
            if path.exists():
                path.replace(retired)
            partial.replace(path)
            _fsync(path.parent)
            shutil.rmtree(retired, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


_ASIDE = re.compile(r"\..+\.removed-\d+")


def set_aside(path: Path) -> Path | None:
    """Take a folder's name from it, all at once; the hidden name that it has now, or None where there is no folder.

    Raises:
        WorkbenchError: its place cannot be written.
    """
    if not path.exists() and not path.is_symlink():
        return None
    aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
    with disk_errors(path):
        path.replace(aside)
        _fsync(path.parent)
    return aside


def discard(path: Path) -> None:
    """Delete a folder that nobody looks for any more; of a link to one only the link.

    Raises:
        WorkbenchError: something of it cannot be deleted.
    """
    with disk_errors(path):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


def sweep_aside(place: Path) -> None:
    """Delete the folders in ``place`` that were ``set_aside`` and, because of a kill, not discarded."""
    for left in place.glob(".*.removed-*"):
        if _ASIDE.fullmatch(left.name):
            discard(left)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in chunks of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(4 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of UTF-8 ``text``, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_room(path: Path, nbytes: int) -> None:
    """Check that ``nbytes`` fit on the disk that ``path`` is, or will be, on.

    Raises:
        WorkbenchError: they do not.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise WorkbenchError(
            f"{path}: {nbytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; free some space or choose another place"
        )
