"""Textual's driver on a terminal that shows the first frame already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.drivers.linux_driver import LinuxDriver

from workbench.first_frame import ENTER

if TYPE_CHECKING:
    from workbench.application import WorkbenchApp


class Driver(LinuxDriver):
    """Takes the terminal over without emptying it: many terminals clear the alternate screen when told to enter it."""

    def __init__(self, app: WorkbenchApp, **options: Any) -> None:
        super().__init__(app, **options)
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
