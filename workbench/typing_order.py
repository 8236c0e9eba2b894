"""Keys act one after another, each on what the one before left, however fast they come.

Textual hands a key to the widget with the focus, which acts on it at once or lets it rise, queue by queue, to the app,
where bindings are looked up. So of two keys that come together the second may act first: a step of the cursor is done
in the table while the mark before it is still on its way up. And what a key sets off (an opened row, a moved focus, a
box that closes) goes through the same queues behind keys that are in them already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from textual.events import Callback, Event, Key

if TYPE_CHECKING:
    from textual.app import App
    from textual.message_pump import MessagePump
    from textual.screen import Screen
    from textual.widget import Widget

ROUNDS = 4
"""How often every queue is waited for: a key in the palette sends a word to the list, the list one to the box, and the
box one to the app, which acts then."""

PATIENCE_S = 2.0
"""How long a handler may hold up the keys behind the one that it is busy with."""


class Typist:
    """The queue before the queues: passes the next key on when the one before has had its effect.

    Args:
        app: the app that the keys are for.
        act: passes one key on to the widgets.
    """

    def __init__(self, app: App[Any], act: Callable[[Event], Awaitable[None]]) -> None:
        self._app = app
        self._act = act
        self._typed: deque[Event] = deque()
        self._task: asyncio.Task[None] | None = None
        self._in: Widget | None = None
        """The widget that may still be at work on the last key, which it handles alone."""

    def take(self, event: Event) -> None:
        """Pass ``event`` on: now, or as soon as what was typed before it is done."""
        self._typed.append(event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._pass_on())

    async def _pass_on(self) -> None:
        while self._typed and self._app.is_running:
            event, screen = self._typed.popleft(), self._app.screen
            try:
                alone = self._handled_alone(event)
                if self._in is not None and self._in is not alone:
                    await self._settle(screen, 1)
                await self._act(event)
                if alone is None:
                    await self._settle(screen, ROUNDS)
                self._in = alone
            except Exception as error:
                # As Textual does for what its own queues meet; nobody else waits for this task.
                self._app._handle_exception(error)

    def _handled_alone(self, event: Event) -> Widget | None:
        """The widget that handles a key without telling anyone: keys for it need no wait in between, and a cursor
        key held down gets none."""
        focused = self._app.focused
        if isinstance(event, Key) and focused is not None:
            return focused if focused.check_consume_key(event.key, event.character) else None
        return None

    async def _settle(self, before: Screen[Any], rounds: int) -> None:
        """Wait until what is in any queue now has been handled, from the innermost widgets to the app; some times."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(rounds):
                    # The screen that the key was typed on may still be busy opening the one that the key led to.
                    for screen in dict.fromkeys((before, self._app.screen)):
                        for pump in reversed(screen.walk_children(with_self=True)):
                            await _has_handled(pump)
                    await _has_handled(self._app)


async def _has_handled(pump: MessagePump) -> None:
    """Wait until a pump has handled what is in its queue now, or has ended."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # A function of Python's: Textual looks at the signature of each, which takes half a millisecond for a built-in one.
    if pump.is_running and pump.post_message(Callback(lambda: done.set_result(None))):
        ends = () if pump._task is None else (pump._task,)
        await asyncio.wait((done, *ends), return_when=asyncio.FIRST_COMPLETED)
