from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def test_a_loaded_variant_runs_on_the_kernels(interpreted: Callable[[Path], None]) -> None:
    interpreted(Path(__file__).parent / "interpreted_variant.py")
