"""Pick several of a list, for the columns of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from workbench.screens.modal import Modal
from workbench.widgets.choices import Choice, Choices


class Choose(Modal[list[str]]):
    """Answers with the keys that are ticked, in the order of the list, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("a", "all", show=False)]
    FOOT: ClassVar[str] = "space ticks · a all · enter accepts"

    def __init__(self, title: str, choices: Sequence[tuple[str, str]], ticked: set[str]) -> None:
        super().__init__()
        self.title_text = title
        self.choices = [Choice(key, text, key) for key, text in choices]
        self.ticked = set(ticked)

    def contents(self) -> Iterable[Widget]:
        self.list = Choices(self.choices, self.ticked)
        yield self.list

    def on_mount(self) -> None:
        self.entitle(self.title_text)
        self.list.focus()

    def action_all(self) -> None:
        every = {choice.key for choice in self.choices}
        self.list.ticked = set() if self.list.ticked == every else every
        self.list.refresh()

    def on_choices_accepted(self) -> None:
        ticked = self.list.ticked or set()
        self.dismiss([choice.key for choice in self.choices if choice.key in ticked])
