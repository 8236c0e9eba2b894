"""Bench: the recorded benchmark runs, in the same table as every other run."""

from __future__ import annotations

from typing import ClassVar

from workbench.screens.base import bindings
from workbench.screens.runs import RunsScreen

EMPTY = """No benchmarks are recorded

Speed and memory of checkpoints and variants will stand here.

1   the runs with their scores"""


class BenchScreen(RunsScreen):
    """The run table, of benchmarks."""

    AREA: ClassVar[str] = "bench"
    SCOPE: ClassVar[str] = "kind=bench"
    EMPTY: ClassVar[str] = EMPTY
    BINDINGS: ClassVar = bindings("bench")
