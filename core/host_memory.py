"""How much memory this process holds above the page cache, and giving back what it holds for nothing."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import TracebackType

_STATUS = Path("/proc/self/status")


def return_freed() -> None:
    """Return to the system what has been freed of the heap, where the C library can (glibc).

    It keeps blocks of up to 32 MiB, which most tensors of a layer are, for ever, and what is allocated next seldom fits
    where they were.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HostMemory:
    """The greatest anonymous memory of this process while entered: what it holds above the page cache."""

    def __init__(self) -> None:
        self.start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def _now() -> int:
        if not _STATUS.is_file():
            return 0
        fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._now())

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
