"""The Triton kernels on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("what", ["kernels", "outer", "rounding", "decoder"])
def test_kernels_are_right_on_the_interpreter(what: str, interpreted: Callable[[Path], None]) -> None:
    interpreted(Path(__file__).parent / f"interpreted_{what}.py")
