"""Asking whether to remove a variant or calibration for good."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.widget import Widget

from core.removal import Removable
from core.store import Store
from core.store.columns import size
from workbench import look
from workbench.removal import refers, what
from workbench.screens.modal import Modal
from workbench.widgets.choices import Choice, Choices
from workbench.widgets.lines import Paragraphs
from workbench.widgets.text import Part

KEEP, REMOVE = "keep", "remove"


class Remove(Modal[Removable]):
    """Answers with what to remove, or None. The cursor stands on keeping it: enter alone removes nothing."""

    FOOT: ClassVar[str] = "↑↓ choose · enter accepts · esc closes"

    def __init__(self, store: Store, found: Removable) -> None:
        super().__init__()
        self.found = found
        about = "; ".join(filter(None, (size(found.size_bytes), what(found), refers(store, found))))
        self.paragraphs: list[list[Part]] = [
            [(found.name, look.BOLD)],
            [(about, look.PLAIN)],
            *([(str(path), look.MUTED)] for path in found.places),
        ]

    def contents(self) -> Iterable[Widget]:
        self.list = Choices([Choice(KEEP, "Keep it"), Choice(REMOVE, "Remove it for good")])
        yield Paragraphs(self.paragraphs)
        yield self.list

    def on_mount(self) -> None:
        self.entitle(f"Remove the {self.found.kind}")
        self.list.focus()

    def on_choices_picked(self, message: Choices.Picked) -> None:
        self.dismiss(self.found if message.choice.key == REMOVE else None)
