"""A list to pick from: text at the left, a word at the right, one row under the cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench import look
from workbench.cells import clip
from workbench.widgets.text import Part, strip


@dataclass(frozen=True)
class Choice:
    """One row: what it stands for, its text, and a word at the right."""

    key: str
    text: str
    aside: str = ""


class Choices(Widget, can_focus=True):
    """A list of choices; with ``ticked`` each can be on or off."""

    DEFAULT_CSS = "Choices { height: 1fr; width: 1fr; }"

    class Picked(Message):
        """Enter was pressed on a choice, or it was clicked."""

        def __init__(self, choice: Choice) -> None:
            super().__init__()
            self.choice = choice

    class Accepted(Message):
        """Enter was pressed where choices can be ticked."""

    def __init__(self, choices: Sequence[Choice], ticked: set[str] | None = None) -> None:
        super().__init__()
        self.choices = list(choices)
        self.ticked = ticked
        self.cursor = 0
        self.top = 0

    @property
    def choice(self) -> Choice | None:
        """The one under the cursor."""
        return self.choices[self.cursor] if self.choices else None

    def set_choices(self, choices: Sequence[Choice]) -> None:
        """Show other choices, the cursor on the first."""
        self.choices, self.cursor, self.top = list(choices), 0, 0
        self.refresh()

    def go(self, index: int) -> None:
        """Put the cursor on a choice."""
        self.cursor = max(0, min(index, len(self.choices) - 1))
        height = max(1, self.size.height)
        self.top = max(0, min(max(self.top, self.cursor - height + 1), self.cursor))
        self.refresh()

    def toggle(self) -> None:
        """Tick or untick the choice under the cursor and go to the next."""
        if self.ticked is not None and self.choice is not None:
            self.ticked ^= {self.choice.key}
            self.go(self.cursor + 1)

    def render_line(self, y: int) -> Strip:
        width, index = self.size.width, self.top + y
        if index >= len(self.choices):
            return Strip.blank(width)
        choice = self.choices[index]
        tick = "" if self.ticked is None else ("[x] " if choice.key in self.ticked else "[ ] ")
        room = width - 2 - cell_len(choice.aside)
        text = clip(f" {tick}{choice.text}", max(4, room))
        if index == self.cursor:
            return strip([(clip(f"{text} {choice.aside} ", width), look.CURSOR)])
        parts: list[Part] = [(text, look.PLAIN), (f" {choice.aside} ", look.KEY)]
        return strip(parts).adjust_cell_length(width)

    def on_click(self, event: events.Click) -> None:
        if self.top + event.y < len(self.choices):
            self.go(self.top + event.y)
            self.pick()

    def pick(self) -> None:
        """Act on the choice under the cursor: tick it, or say that it was picked."""
        if self.ticked is not None:
            self.toggle()
        elif self.choice is not None:
            self.post_message(self.Picked(self.choice))

    def move(self, key: str) -> bool:
        """Move by a key; whether it was one that moves."""
        page = max(1, self.size.height - 1)
        steps = {"up": -1, "down": 1, "pageup": -page, "pagedown": page, "home": -len(self.choices)}
        steps["end"] = len(self.choices)
        if key in steps:
            self.go(self.cursor + steps[key])
        return key in steps

    def on_key(self, event: events.Key) -> None:
        if self.move({"j": "down", "k": "up"}.get(event.key, event.key)):
            event.stop()
        elif event.key == "space" and self.ticked is not None:
            self.toggle()
            event.stop()
        elif event.key == "enter":
            if self.ticked is None:
                self.pick()
            else:
                self.post_message(self.Accepted())
            event.stop()
