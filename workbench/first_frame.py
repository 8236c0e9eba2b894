"""The run table on the terminal while Textual is still being imported, which is most of the time of a start.

It is drawn by the code that draws the app's own first paint, which comes over it without a visible change. Keys that
are pressed meanwhile wait in the terminal until the app reads them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.segment import Segment

from core.store import Store
from workbench import actions, bars
from workbench.columns import RUN_COLUMNS
from workbench.queries import RunSource, count_unfinished, survey
from workbench.run_lines import CHROME, EMPTY, SCOPE, SURVEY_ASIDE, description, heading
from workbench.sheet import Segments, Sheet

if TYPE_CHECKING:
    from workbench.widgets.text import Part

ENTER = "\x1b[?1049h"
"""To the alternate screen, empty."""
HIDE_CURSOR = "\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"


def lines(store: Store, width: int, height: int) -> list[Segments]:
    """The first screen: ``height`` lines of ``width`` cells.

    Raises:
        WorkbenchError: the database cannot be read.
    """
    source = RunSource(store, SCOPE)
    body = max(0, height - CHROME)
    sheet = Sheet(source, RUN_COLUMNS, empty=EMPTY)
    sheet.page = max(1, body - 1)
    sheet.read()
    if sheet.total <= SURVEY_ASIDE:
        source.take(survey(store, source.condition))
        sheet.columns = [column for column in RUN_COLUMNS if column.key in source.filled | {"name"}]
    running = count_unfinished(store)

    def line(parts: list[Part]) -> Segments:
        return Segment.adjust_line_length([Segment(text, style) for text, style in parts if text], width)

    left, right = heading(source, sheet.total)
    return [
        line(bars.area_bar(bars.TITLES, 0, running, width)),
        line(bars.two_ends(left, right, width)),
        *(sheet.draw(y, width, body, focused=True) for y in range(body)),
        line(description(sheet.row)),
        line(bars.key_bar(actions.hints("runs"), "", width)),
    ][:height]


def encoded(shown: list[Segments], console: Console) -> str:
    """Lines as what a terminal with the colours of ``console`` is sent."""
    colours = COLOR_SYSTEMS.get(console.color_system or "", ColorSystem.STANDARD)
    text = []
    for y, segments in enumerate(shown, 1):
        text.append(f"\x1b[{y};1H")
        for part, style, _ in Segment.remove_color(segments) if console.no_color else segments:
            text.append(style.render(part, color_system=colours) if style else part)
    return "".join(text)


class FirstFrame:
    """The terminal between the first frame and the app: a context that leaves it as it was unless the app took it.

    Raises, when it is made:
        WorkbenchError: the database cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self._input, self._output = sys.stdin.fileno(), sys.stderr.fileno()  # as Textual's driver has it
        console = Console(file=sys.stderr, force_terminal=True, legacy_windows=False)
        self._text = encoded(lines(store, *console.size), console)
        self._attributes: list[Any] = []

    def __enter__(self) -> FirstFrame:
        self._attributes = termios.tcgetattr(self._input)
        quiet = list(self._attributes)
        # As Textual sets it: keys are not echoed and wait until they are read, ctrl+c and ctrl+z among them.
        quiet[0] &= ~(termios.IXON | termios.IXOFF | termios.ICRNL | termios.INLCR | termios.IGNCR)
        quiet[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, self._leave)  # until the app has handlers of its own
        termios.tcsetattr(self._input, termios.TCSANOW, quiet)
        self._send(ENTER + HIDE_CURSOR + self._text)
        return self

    def __exit__(self, *_: object) -> None:
        if self._attributes:
            with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
                self._send(LEAVE)
                termios.tcsetattr(self._input, termios.TCSANOW, self._attributes)

    def _send(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._output, data) :]

    def _leave(self, number: int, _frame: FrameType | None) -> None:
        # An exception would pass through whatever is being imported, which may catch it or make another of it.
        self.__exit__()
        os._exit(128 + number)

    def hand_over(self) -> list[Any]:
        """Give the terminal to the app; the attributes it is to restore when it ends."""
        attributes, self._attributes = self._attributes, []
        return attributes
