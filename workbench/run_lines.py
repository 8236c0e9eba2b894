"""What stands around the run table. Needs no Textual."""

from __future__ import annotations

from typing import Final

from workbench import look
from workbench.columns import described
from workbench.queries import RunSource
from workbench.sheet import Row
from workbench.widgets.text import Part, visible

SCOPE: Final = "kind=evaluate"
"""The runs of the first screen, as a filter line."""
CHROME: Final = 4
"""The lines around the table: areas, heading, description, keys."""
SURVEY_ASIDE: Final = 2000
"""With more runs than this the survey for bold figures and empty columns is not made before a paint."""

EMPTY: Final = """No runs yet

A run is one checkpoint or variant answering one suite of samples.

n   start one: evaluate the embedded demo checkpoint, or
    calibrate, quantize and evaluate in one chain
4   see the checkpoints there are
?   help of this screen

Without the app:  lance-workbench demo"""

NOTHING: Final = """No run passes this filter

/     change it, for example   suite:demo-x2t kl<0.1 -minmax
esc   while it is open takes it away"""


def heading(source: RunSource, shown: int, only_differing: bool = False) -> tuple[list[Part], list[Part]]:
    """The two ends of the line above the table: the filter, and how many runs pass it."""
    count = f"{shown:,} {'run' if shown == 1 else 'runs'} "
    if source.filter:
        count = f"{shown:,} of {source.total():,} runs "
    left = [(" filter: ", look.ACCENT), (source.filter, look.PLAIN)] if source.filter else []
    if not left and shown:
        left = [(" all runs", look.MUTED)]
    if only_differing:
        left.append(("  only columns that differ", look.MUTED))
    return left, [(count, look.MUTED)] if shown or left else []


def description(row: Row | None) -> list[Part]:
    """The run under the cursor in words."""
    return [(" " + visible(described(row)), look.MUTED)] if row else []
