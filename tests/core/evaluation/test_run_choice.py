"""What run numbers and names stand for when two runs are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UsageError
from core.evaluation.choice import pairs
from core.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "runs.db") as opened:
        _evaluated(opened, "bf16", "x2t")  # 1
        _evaluated(opened, "bf16", "t2i")  # 2
        _evaluated(opened, "int4", "x2t", baseline=1)  # 3
        _evaluated(opened, "int4", "t2i", baseline=2)  # 4
        _evaluated(opened, "bf16", "x2t", baseline=1)  # 5, the noise floor
        _evaluated(opened, "int4", "x2t", baseline=1)  # 6
        _evaluated(opened, "int3", "x2t", baseline=1)  # 7
        _evaluated(opened, "int3", "t2i", baseline=2, state="failed")  # 8
        yield opened


def _evaluated(
    store: Store, recipe: str, suite: str, baseline: int | None = None, state: str = "succeeded"
) -> None:
    variant = None if recipe == "bf16" else f"demo_{recipe}"
    run = store.start_run(
        checkpoint="demo", variant=variant, recipe=recipe, suite=suite, task=suite, baseline_run_id=baseline
    )
    store.finish_run(run, state)


@pytest.mark.parametrize(
    ("first", "second", "suite", "expected"),
    [
        ("1", "7", None, [(1, 7)]),
        (None, "6", None, [(1, 6)]),
        (None, "demo_int4", None, [(2, 4), (1, 6)]),
        ("demo", "demo_int4", "x2t", [(1, 6)]),
        ("demo_bf16", "demo_int4", "t2i", [(2, 4)]),
        ("demo_int3", "demo_int4", None, [(7, 6)]),
        ("demo_int4", "3", None, [(6, 3)]),
        ("1", "demo_int4", None, [(1, 6)]),
        ("demo", "demo_bf16", "x2t", [(1, 5)]),
    ],
)
def test_names_and_numbers(
    store: Store, first: str | None, second: str, suite: str | None, expected: list[tuple[int, int]]
) -> None:
    assert pairs(store, first, second, suite) == expected


def test_what_is_unknown(store: Store) -> None:
    with pytest.raises(
        UsageError, match=r"demo_int5: no finished evaluation; evaluated are demo_bf16, demo_int3, demo_int4"
    ):
        pairs(store, "demo", "demo_int5")
    with pytest.raises(UsageError, match="demo_int3: no finished evaluation on t2i"):
        pairs(store, "demo", "demo_int3", "t2i")
    with pytest.raises(UsageError, match="were not evaluated on the same suite"):
        pairs(store, "demo_int3", "demo_int4", "t2i")
    with pytest.raises(UsageError, match="run 2 of demo_bf16 has no baseline"):
        pairs(store, None, "2")
    with pytest.raises(UsageError, match="run 99"):
        pairs(store, None, "99")
