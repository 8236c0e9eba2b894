"""Whether the database that is open is still the one that others find under its name."""

from __future__ import annotations

from pathlib import Path

from core.errors import StoreError


def _identity(path: Path) -> tuple[int, int] | None:
    """What the file of that name is on its disk, whatever it is called; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class SameFile:
    """Remembers which file a path led to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """Check that the path leads to the same file still.

        Raises:
            StoreError: it does not; what is written into the open file is seen by nobody.
        """
        if _identity(self._path) != self._identity:
            raise StoreError(
                f"{self._path}: was moved, deleted or replaced while it was open here; leave with q and start the app "
                "again, which opens what is there now"
            )
