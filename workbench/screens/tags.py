"""Tags and note of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.widget import Widget

from workbench.screens.modal import Modal
from workbench.sheet import Row
from workbench.widgets.prompt import Prompt


class Tags(Modal[tuple[int, str, str]]):
    """Answers with the run's id, its tags and its note, or None."""

    FOOT: ClassVar[str] = "enter saves · tab next field · esc closes"

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row

    def contents(self) -> Iterable[Widget]:
        self.tags = Prompt("tags", "words, separated by blanks", self.row["tags"] or "", width=8)
        self.note = Prompt("note", "anything worth remembering", self.row["note"] or "", width=8)
        yield self.tags
        yield self.note

    def on_mount(self) -> None:
        self.entitle(f"Run {self.row['id']} · {self.row['name']}")
        self.tags.input.focus()

    def on_input_submitted(self) -> None:
        self.dismiss((self.row["id"], self.tags.input.value.strip(), self.note.input.value.strip()))
