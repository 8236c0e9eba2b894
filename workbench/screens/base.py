"""What the five areas have in common: the bar of areas, the body, the message line, the bar of keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from workbench import actions, bars
from workbench.widgets.lines import AreaBar, KeyBar, Notice

if TYPE_CHECKING:
    from textual.timer import Timer

    from workbench.application import WorkbenchApp

NOTICE_S = 8.0


def bindings(screen: str) -> list[BindingType]:
    """The key bindings of a screen, from the table of actions."""
    return [
        Binding(action.key, action.method, action.title, id=action.id, show=False)
        for action in actions.of_screen(screen)
    ]


class AreaScreen(Screen[None]):
    """An area. Subclasses name it, compose its body and read their data again in ``refresh_data``."""

    AREA: ClassVar[str]
    UNDER: ClassVar[str] = ""
    """The area whose tab is set off, for a screen that has none of its own."""
    app: WorkbenchApp

    def __init__(self) -> None:
        super().__init__()
        self.areas = AreaBar(bars.TITLES, actions.AREAS.index(self.UNDER or self.AREA))
        self.notice = Notice()
        self.keys = KeyBar(actions.hints(self.AREA))
        self._notice_timer: Timer | None = None
        self._seen: tuple[int, int] | None = None

    def compose(self) -> Iterable[Widget]:
        yield self.areas
        yield from self.body()
        yield self.notice
        yield self.keys

    def body(self) -> Iterable[Widget]:
        """The widgets between the bar of areas and the bar of keys."""
        raise NotImplementedError

    def refresh_data(self) -> None:
        """The database changed: show what is in it now."""
        self.areas.set_running(self.app.active_jobs)
        self._seen = self.app.store.data_version()

    def subject(self) -> str | None:
        """The name of the checkpoint or variant that a new job would most likely be about."""
        return None

    def on_screen_resume(self) -> None:
        if self._seen is not None and self._seen != self.app.store.data_version():
            with self.app.guarded():
                self.refresh_data()
        self.areas.set_running(self.app.active_jobs)

    async def on_area_bar_chosen(self, message: AreaBar.Chosen) -> None:
        await self.app.go_to(actions.AREAS[message.index])

    def show_notice(self, text: str, *, bad: bool = False) -> None:
        """Show a message above the keys; it goes by itself, an error after a longer time."""
        self.notice.show(text, bad=bad)
        if self._notice_timer is not None:
            self._notice_timer.stop()
        self._notice_timer = self.set_timer(NOTICE_S * (3 if bad else 1), self.notice.hide)
