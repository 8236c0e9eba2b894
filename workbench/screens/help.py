"""Help of one screen: its keys, those of tables, and those that work everywhere, each with its command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widget import Widget

from workbench import actions, look
from workbench.screens.modal import Modal
from workbench.widgets.document import Document
from workbench.widgets.text import strip, wrapped

MOVING = (
    ("j k ↑ ↓", "Next and previous row; page keys for more"),
    ("← →", "Choose a column; the first one stays in place"),
)

ABOUT = {
    "runs": "Every evaluation, newest first. Scores are against the bf16 run of the same suite, with their 95 % "
    "interval or standard error. Bold is the best of a checkpoint's variants on a suite.",
    "compare": "One sample at a time. Words that only bf16 says are underlined blue, words that only the variant says "
    "underlined orange. The bar at the right edge shows where long answers differ.",
    "jobs": "Work in the background. It goes on when you quit the app or lose the connection.",
    "checkpoints": "Source weights and, below each, the variants and calibrations made from it. What a killed job left "
    "of a variant is a row too: the same job goes on with it, x removes it.",
    "bench": "Recorded benchmark runs.",
    "sensitivity": "Where a recipe hurts a checkpoint. Above, the answers' KL (nats a token) and the velocities' "
    "error after each step of the recipe, and how well each layer's outputs are kept. Groups are rounded one at a "
    "time; their share is of what all of them do. Sorting begins with what suffers most.",
}

FILTER = (
    "Filter: words are looked for everywhere; name:awq suite:demo-x2t kl<0.1 bits<=4.5 state=failed narrow one column; "
    "a minus in front excludes; all terms must hold. kind:calibrate and kind:quantize show those runs."
)
COPYING = "To select text with the mouse hold shift (option on a Mac). At the right: the command that does the same."


def lines_of(area: str, width: int) -> list[Strip]:
    """The help text of an area as lines."""
    lines = [strip(line) for line in wrapped([(ABOUT[area], look.PLAIN)], width)]
    own = actions.of_screen(area)
    sections = [(area.capitalize(), [action for action in own if action.screen == area])]
    lines_of_keys = [("Tables", [action for action in own if action.screen == "table"])]
    sections += [section for section in lines_of_keys if section[1]]
    sections.append(("Everywhere", actions.everywhere()))
    for title, shown in sections:
        lines += [strip([]), strip([(title, look.BOLD)])]
        if title == "Tables":
            lines += [_line(keys, text, "", width) for keys, text in MOVING]
        lines += [_line(action.keys, action.title, action.cli, width) for action in shown]
    if area in ("runs", "bench"):
        lines += [strip([]), *(strip(line) for line in wrapped([(FILTER, look.MUTED)], width))]
    return [*lines, strip([]), *(strip(line) for line in wrapped([(COPYING, look.MUTED)], width))]


def _line(keys: str, title: str, command: str, width: int) -> Strip:
    lead = f"  {keys:<9}"
    room = max(0, width - len(lead) - len(title) - len(command) - 1)
    aside = " " * room + command if room > 1 else ""
    return strip([(lead, look.KEY), (title, look.PLAIN), (aside, look.MUTED)])


class Help(Modal[None]):
    """The help box."""

    BOX_TITLE: ClassVar[str] = "Help"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,q", "dismiss_box", show=False)]

    def __init__(self, area: str) -> None:
        super().__init__()
        self.area = area

    def contents(self) -> Iterable[Widget]:
        self.document = Document()
        yield self.document

    def on_mount(self) -> None:
        self.document.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        self.document.show(lines_of(self.area, max(20, self.document.size.width - 2)))
