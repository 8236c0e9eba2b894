"""Textual's driver on a terminal that shows the first frame already."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual.drivers.linux_driver import LinuxDriver
from textual.events import InputEvent

from workbench.first_frame import ENTER

if TYPE_CHECKING:
    from textual.message import Message

    from workbench.application import WorkbenchApp


class Driver(LinuxDriver):
    """Takes the terminal over without emptying it: many terminals clear the alternate screen when told to enter it.

    What was typed at the first frame reaches the app when its widgets are there.
    """

    def __init__(self, app: WorkbenchApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._painted = app.painted
        self._running_loop = asyncio.get_running_loop()
        self._frame = app.first_frame
        self._entered = self._frame is not None

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]  # Textual's own
        if self._frame is not None:
            self.attrs_before = self._frame.hand_over()
            self._frame = None

    def write(self, data: str) -> None:
        if self._entered and data == ENTER:
            self._entered = False
            return
        super().write(data)

    def send_message(self, message: Message) -> None:
        if isinstance(message, InputEvent) and not self._painted.is_set():
            asyncio.run_coroutine_threadsafe(self._send_when_painted(message), self._running_loop)
        else:
            super().send_message(message)

    async def _send_when_painted(self, message: Message) -> None:
        await self._painted.wait()
        self._app.post_message(message)
