"""A framed box over the current screen; escape closes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widget import Widget

from core.plain_text import visible

if TYPE_CHECKING:
    from workbench.application import WorkbenchApp

Result = TypeVar("Result")


class Modal(ModalScreen[Result]):
    """Subclasses give the title and the contents of the box."""

    CSS_PATH: ClassVar[str | Path | None] = Path(__file__).with_name("modal.tcss")
    BOX_TITLE: ClassVar[str] = ""
    FOOT: ClassVar[str] = "esc closes"
    # Bindings and not key_ methods: after those the key would go on to the screen below.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss_box", show=False)]
    app: WorkbenchApp

    def compose(self) -> Iterable[Widget]:
        box = Vertical(*self.contents(), id="box")
        box.border_title = self.BOX_TITLE
        box.border_subtitle = self.FOOT
        yield box

    def contents(self) -> Iterable[Widget]:
        """The widgets in the box."""
        raise NotImplementedError

    def entitle(self, text: str) -> None:
        """Give the box a title of words of any origin; Textual reads a plain string for markup."""
        self.query_one("#box").border_title = Text(visible(text))

    def action_dismiss_box(self) -> None:
        self.dismiss(None)
