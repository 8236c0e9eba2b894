"""The terminal app: five areas over one database, a poll that notices changes, and a clean way out.

It is a client: it reads runs.db, writes job rows, and holds no lock. torch is never imported here. Screens are
imported when they are first opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.events import Event, Key, Paste
from textual.reactive import Reactive

from core.errors import WorkbenchError
from core.plain_text import visible
from core.store import Store
from workbench import actions
from workbench.queries import count_unfinished
from workbench.same_file import SameFile
from workbench.trouble import of_system, unexpected
from workbench.typing_order import Typist

if TYPE_CHECKING:
    from textual.screen import Screen, ScreenResultCallbackType

    from workbench.first_frame import FirstFrame
    from workbench.screens.base import AreaScreen
    from workbench.screens.modal import Modal, Result

POLL_BUSY_S = 0.25
POLL_IDLE_S = 2.0


def _area(name: str) -> Screen[Any]:
    """The screen of an area, its module imported now."""
    if name == "runs":
        from workbench.screens.runs import RunsScreen

        return RunsScreen()
    if name == "compare":
        from workbench.screens.compare import CompareScreen

        return CompareScreen()
    if name == "jobs":
        from workbench.screens.jobs import JobsScreen

        return JobsScreen()
    if name == "checkpoints":
        from workbench.screens.checkpoints import CheckpointsScreen

        return CheckpointsScreen()
    if name == "sensitivity":
        from workbench.screens.sensitivity import SensitivityScreen

        return SensitivityScreen()
    from workbench.screens.bench import BenchScreen

    return BenchScreen()


class WorkbenchApp(App[None]):
    """The app over an open store, on a terminal that may show its first frame already."""

    TITLE = "lance-workbench"
    # The first screen's style is read with the app's own: read later it would have everything parsed again, 15 ms.
    CSS_PATH: ClassVar[list[str | PurePath]] = ["application.tcss", "screens/runs.tcss"]
    ENABLE_COMMAND_PALETTE = False
    # The first area is the default screen and becomes a mode once it is mounted: Textual parses every style sheet a
    # second time for a mode that it starts with, 15 ms of the first paint.
    DEFAULT_MODE = "runs"
    MODES: ClassVar = {name: partial(_area, name) for name in actions.SCREENS if name != "runs"}
    # The user's own sixteen colours: right on dark and light without asking, and half the bytes of true colour.
    # It is the initial value, so that nothing has to be parsed anew for a change of theme at start-up.
    theme = Reactive("ansi-dark", init=False)
    BINDINGS: ClassVar = [
        Binding(action.key, action.method, action.title, id=action.id, show=False)
        for action in actions.everywhere()
    ]

    def __init__(self, store: Store, first_frame: FirstFrame | None = None) -> None:
        driver = None
        if first_frame is not None:
            from workbench.driver import Driver

            driver = Driver
        super().__init__(driver_class=driver)
        self.store = store
        self.database = SameFile(store.path)
        self.first_frame = first_frame
        self.painted = asyncio.Event()
        self._growing = contextlib.ExitStack()
        self.animation_level = "none"
        # Messages have a line of their own and nothing has a tooltip: no need to make their widgets for every screen.
        self._disable_tooltips = self._disable_notifications = True
        self.active_jobs = count_unfinished(store)
        self._seen = store.data_version()
        self._typist = Typist(self, super().on_event)

    # --- life ---------------------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[Any]:
        # Painted once, when all of it is there, and not as it grows.
        self._growing.enter_context(self.batch_update())
        return _area(self.DEFAULT_MODE)

    def on_load(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGTERM):
            # Without these a dropped connection or a plain kill leaves the terminal in mouse and alternate-screen mode.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, partial(self.exit, return_code=128 + number))

    def on_mount(self) -> None:
        self.add_mode(self.DEFAULT_MODE, partial(_area, self.DEFAULT_MODE))
        self._poll_later()
        self.call_after_refresh(self._is_whole)

    def _is_whole(self) -> None:
        self._growing.close()
        self.screen.refresh()
        self.call_after_refresh(self._has_painted)

    def _has_painted(self) -> None:
        # Collections are off until now: what start-up allocates lives as long as the app.
        gc.freeze()
        gc.enable()
        self.painted.set()

    async def on_event(self, event: Event) -> None:
        """Handle an event as Textual does, but what is typed one at a time."""
        if isinstance(event, Key | Paste) and not event.is_forwarded:
            self._typist.take(event)
        else:
            await super().on_event(event)

    def _poll_later(self) -> None:
        self.set_timer(POLL_BUSY_S if self.active_jobs else POLL_IDLE_S, self._poll)

    def _poll(self) -> None:
        if not self.screen_stack:
            return  # the app is being left: no screen is there to be told
        with self.guarded():
            self.look_again()
        self._poll_later()

    def look_again(self) -> None:
        """Tell the screen if the database changed since the last look; costs microseconds when it did not."""
        self.database.check()
        seen = self.store.data_version()
        if seen == self._seen:
            return
        self._seen = seen
        self.active_jobs = count_unfinished(self.store)
        self.area.refresh_data()

    @property
    def area(self) -> AreaScreen:
        """The screen of the current area, also while a form lies over it."""
        return self.screen_stack[0]  # type: ignore[return-value]

    # --- messages -------------------------------------------------------------------------------------------------

    def say(self, text: str, *, bad: bool = False) -> None:
        """Show one message above the keys of the current area."""
        self.area.show_notice(text, bad=bad)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Show an error of the core.errors family, or of the file system, as one line instead of letting it end the
        app."""
        try:
            yield
        except WorkbenchError as error:
            self.say(str(error), bad=True)
        except OSError as error:
            if (text := of_system(error)) is None:
                raise
            self.say(text, bad=True)

    def _handle_exception(self, error: Exception) -> None:
        """An error that nobody met ends the app with one line."""
        if isinstance(error, WorkbenchError):
            self.exit(return_code=error.exit_code, message=f"error: {error}")
        else:
            super()._handle_exception(error)

    def _fatal_error(self) -> None:
        # In place of Textual's own, a traceback of some screens.
        error = self._exception
        if error is not None and not self._exit_renderables:
            text = of_system(error) if isinstance(error, OSError) else None
            self.panic(Text(f"error: {visible(text or unexpected(error))}"))

    async def run_action(self, action: Any, default_namespace: Any = None, namespaces: Any = None) -> bool:
        """Run an action as Textual does, with its errors shown as one line."""
        with self.guarded():
            return await super().run_action(action, default_namespace, namespaces)
        return True

    def copy(self, text: str, what: str) -> None:
        """Copy through the terminal (OSC 52), which also works over SSH."""
        self.copy_to_clipboard(text)
        self.say(f"copied {what}: {len(text.encode())} bytes sent to the terminal's clipboard (OSC 52)")

    def supervise(self) -> None:
        """See that somebody runs the jobs there are; in a thread, because starting a process takes a while."""
        self.run_worker(self._supervise, thread=True, group="supervise", exit_on_error=False)

    def _supervise(self) -> None:
        from core import jobs

        try:
            with Store.open(self.store.path) as store:
                jobs.ensure_supervisor(store)
        except WorkbenchError as error:
            self.call_from_thread(self.say, str(error), bad=True)

    # --- actions --------------------------------------------------------------------------------------------------

    async def go_to(self, area: str) -> AreaScreen:
        """Switch to an area and return its screen, mounted."""
        with self.batch_update():
            await self.switch_mode(area)
        return self.area

    async def action_area_runs(self) -> None:
        await self.go_to("runs")

    async def action_area_compare(self) -> None:
        await self.go_to("compare")

    async def action_area_jobs(self) -> None:
        await self.go_to("jobs")

    async def action_area_checkpoints(self) -> None:
        await self.go_to("checkpoints")

    async def action_area_bench(self) -> None:
        await self.go_to("bench")

    async def open_box(
        self, box: Modal[Result], answered: ScreenResultCallbackType[Result] | None = None
    ) -> None:
        """Open a box over the area, sent once it is complete: painted as it grows it would be three times the bytes."""
        with self.batch_update():
            await self.push_screen(box, answered)

    async def action_palette(self) -> None:
        from workbench.screens.palette import Palette

        await self.open_box(Palette(), self._run_chosen)

    async def _run_chosen(self, action: actions.Action | None) -> None:
        if action is not None:
            await self.perform(action)

    async def perform(self, action: actions.Action) -> None:
        """Run any action of the table, going to its area first."""
        if action.screen in actions.SCREENS and action.screen != self.current_mode:
            await self.go_to(action.screen)
        await self.run_action(f"{'app' if action.screen == 'app' else 'screen'}.{action.method}")

    async def action_help(self) -> None:
        from workbench.screens.help import Help

        await self.open_box(Help(self.current_mode))

    async def action_new_job(self) -> None:
        from workbench.screens.new_job import NewJob

        await self.open_box(NewJob(self.store, self.area.subject()), self._job_started)

    def _job_started(self, ids: list[int] | None) -> None:
        if ids:
            self.supervise()
            self.look_again()
            self.say(
                f"started job {' → '.join(map(str, ids))}; 3 shows its progress, and it goes on if you quit"
            )

    def action_leave(self) -> None:
        count = count_unfinished(self.store)
        left = "" if not count else f"{count} job{'s keep' if count > 1 else ' keeps'} running"
        self.exit(message=left or None)
