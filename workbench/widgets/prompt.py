"""A one-line input with its name before it, without a blinking cursor."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input

from workbench import look
from workbench.widgets.lines import Line


class Prompt(Horizontal):
    """``name: text``; the input's own messages bubble up."""

    DEFAULT_CSS = """
    Prompt { height: 1; width: 1fr; }
    Prompt Input { width: 1fr; height: 1; border: none; padding: 0; background: transparent; }
    Prompt Input:focus { border: none; background: transparent; }
    """

    def __init__(
        self, name: str, placeholder: str = "", value: str = "", *, width: int | None = None
    ) -> None:
        super().__init__()
        self.label = Line()
        self.label.show([(f" {name}: ", look.ACCENT)])
        self.label.styles.width = width or cell_len(name) + 3
        self.input = Input(value=value, placeholder=placeholder, compact=True, select_on_focus=False)
        self.input.cursor_blink = False

    def rename(self, name: str) -> None:
        """Show another name before the input."""
        self.label.show([(f" {name}: ", look.ACCENT)])

    def compose(self) -> Iterable[Widget]:
        yield self.label
        yield self.input
