from __future__ import annotations

import pytest
import torch

from core.checkpoints import source
from core.checkpoints.source import not_finite

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_value_that_is_not_finite_is_counted_wherever_it_lies(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PIECE", 64)
    values = torch.linspace(-3, 3, 1000).reshape(10, 100)
    assert not_finite(values.to(dtype)) == 0
    for count, (row, column, value) in enumerate(
        [(0, 0, float("nan")), (9, 99, float("inf")), (3, 50, float("-inf")), (3, 51, float("nan"))], 1
    ):
        values[row, column] = value
        assert not_finite(values.to(dtype)) == count


def test_nothing_and_integers_are_finite() -> None:
    assert not_finite(torch.zeros(0, 5)) == 0
    assert not_finite(torch.arange(9)) == 0
