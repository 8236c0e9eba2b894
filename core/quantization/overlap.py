"""Reading the next layer and writing the last one while a layer is computed, one of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def read_ahead(read: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[tuple[Item, Found]]:
    """Each of ``items`` with what ``read`` makes of it, the next being read while one is worked on.

    What ``read`` raises is raised here, when its item's turn has come.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        waiting: tuple[Item, Future[Found]] | None = None
        for item in items:
            following = item, pool.submit(read, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


class WriteBehind:
    """Does one thing after another in the background; at most one waits, so what it holds stays bounded.

    Left without an error, it has done all; what one of them raised is raised by the next call or on leaving.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write-behind")
        self._last: Future[None] | None = None

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def __call__(self, work: Callable[[], None]) -> None:
        """Do ``work`` in the background, after the last one is done."""
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Until what was given last is done; raises what it raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
