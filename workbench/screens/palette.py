"""The command palette: every action with its key; typing narrows the list, enter runs the action."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.widget import Widget

from workbench import actions
from workbench.screens.modal import Modal
from workbench.widgets.choices import Choice, Choices
from workbench.widgets.prompt import Prompt


def found(text: str, here: str) -> list[Choice]:
    """The actions whose title has every word of ``text``, those of the screen ``here`` first."""
    words = text.lower().split()
    shown = [action for action in actions.ACTIONS if action.screen != "form"]
    shown = [action for action in shown if action.screen != "table" or here in actions.TABLES]
    rank = {here: 0, "app": 1, "table": 2}
    ordered = sorted(shown, key=lambda action: rank.get(action.screen, 3))
    titles = [(action, _title(action)) for action in ordered]
    return [
        Choice(action.id, title, action.keys)
        for action, title in titles
        if all(word in title.lower() for word in words)
    ]


def _title(action: actions.Action) -> str:
    return (
        action.title if action.screen in ("app", "table") else f"{action.screen.capitalize()}: {action.title}"
    )


class Palette(Modal[actions.Action]):
    """Answers with the action picked, or None."""

    BOX_TITLE: ClassVar[str] = "Commands"
    FOOT: ClassVar[str] = "enter runs · esc closes"

    def contents(self) -> Iterable[Widget]:
        self.here = self.app.current_mode
        self.prompt = Prompt("find", "a few letters of what to do")
        self.list = Choices(found("", self.here))
        self.list.can_focus = False
        yield self.prompt
        yield self.list

    def on_mount(self) -> None:
        self.prompt.input.focus()

    def on_input_changed(self) -> None:
        self.list.set_choices(found(self.prompt.input.value, self.here))

    def on_input_submitted(self) -> None:
        self.list.pick()

    def on_choices_picked(self, message: Choices.Picked) -> None:
        self.dismiss(next(action for action in actions.ACTIONS if action.id == message.choice.key))

    def on_key(self, event: events.Key) -> None:
        if event.key not in ("home", "end") and self.list.move(event.key):
            event.stop()
