"""Reading ahead and writing behind keep order, hold one of each, and lose no error."""

from __future__ import annotations

import threading

import pytest

from core.quantization.overlap import WriteBehind, read_ahead


def test_the_next_item_is_read_while_one_is_worked_on() -> None:
    reached = [threading.Event() for _ in range(4)]

    def read(item: int) -> int:
        reached[item].set()
        return item * 10

    seen = []
    for item, found in read_ahead(read, range(4)):
        assert item == 3 or reached[item + 1].wait(10), "the next item is not being read"
        assert item > 1 or not reached[item + 2].is_set(), "more than one item is read ahead"
        seen.append((item, found))
    assert seen == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_a_read_that_fails_is_told_when_its_turn_comes() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise OSError("no such layer")
        return item

    seen = []
    with pytest.raises(OSError, match="no such layer"):
        for item, _ in read_ahead(read, range(4)):
            seen.append(item)
    assert seen == [0, 1]


def test_writes_are_done_in_order_and_all_of_them_before_it_is_left() -> None:
    done: list[int] = []
    gate = threading.Event()
    with WriteBehind() as behind:
        behind(lambda: (gate.wait(10), done.append(0))[1])
        assert done == []
        gate.set()
        for number in (1, 2, 3):
            behind(lambda number=number: done.append(number))  # type: ignore[misc]
            assert done[:number] == list(range(number))
    assert done == [0, 1, 2, 3]


def test_a_write_that_fails_is_raised_by_the_next_or_on_leaving() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind() as behind:
        behind(fail)
        behind(lambda: pytest.fail("written after a failure"))
    with pytest.raises(OSError, match="disk full"), WriteBehind() as behind:
        behind(fail)
    with pytest.raises(KeyError), WriteBehind() as behind:
        behind(fail)
        raise KeyError("the loop's own error counts")
