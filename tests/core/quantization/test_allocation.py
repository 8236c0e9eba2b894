"""Widths within a budget: never more bytes, and no better choice is missed by more than one step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.quantization.allocation import Option, allocate, hull

GROUPS = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0.001, 10), st.floats(0.1, 0.9)), min_size=1, max_size=5
)


def options(size: int, loss: float, decay: float) -> list[Option]:
    return [Option(bits, bits * size, loss * decay ** (bits - 3)) for bits in (3, 4, 5, 6)]


@given(GROUPS, st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_an_allocation_fits_and_is_a_step_from_the_best(
    groups: list[tuple[int, float, float]], share: float
) -> None:
    known = {f"g{number}": options(*group) for number, group in enumerate(groups)}
    least = sum(found[0].nbytes for found in known.values())
    allowance = least + round(share * least)
    chosen = allocate(known, allowance)
    assert sum(option.nbytes for option in chosen.values()) <= allowance
    best = min(
        sum(option.loss for option in combination)
        for combination in itertools.product(*known.values())
        if sum(option.nbytes for option in combination) <= allowance
    )
    step = max(a.loss - b.loss for found in known.values() for a, b in itertools.pairwise(hull(found)))
    assert sum(option.loss for option in chosen.values()) <= best + step + 1e-9


def test_bytes_go_where_they_save_most() -> None:
    chosen = allocate(
        {"deaf": options(10, 0.01, 0.5), "keen": options(10, 10.0, 0.5), "pinned": [Option(4, 40, 1)]}, 140
    )
    assert {group: option.bits for group, option in chosen.items()} == {"deaf": 4, "keen": 6, "pinned": 4}


def test_widths_that_lose_more_for_more_bytes_are_never_taken() -> None:
    odd = [Option(3, 30, 1.0), Option(4, 40, 1.2), Option(5, 50, 0.95), Option(6, 60, 0.1)]
    assert [option.bits for option in hull(odd)] == [3, 6]
    assert allocate({"odd": odd}, 55)["odd"].bits == 3


def test_a_budget_below_the_narrowest_is_refused() -> None:
    with pytest.raises(UsageError, match="the narrowest widths take 30 bytes, the budget is 29: raise it"):
        allocate({"g": options(10, 1.0, 0.5)}, 29)
