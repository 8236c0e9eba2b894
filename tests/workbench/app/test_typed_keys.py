"""Keys that come in one go, as from a fast hand, a slow line or a paste: each acts on what the one before left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textual import events

from workbench.screens.runs import RunsScreen


async def typed(screen: Any, *keys: str) -> str:
    """Hand keys to the app without waiting for any of them; what is on screen in the end."""
    for key in keys:
        screen.app.post_message(events.Key(key, key if len(key) == 1 else " " if key == "space" else None))
    await screen.pilot.pause()
    await screen.app._typist._task
    return str(await screen.settle())


def ids(screen: Any) -> list[int]:
    """The runs of the table from top to bottom."""
    area = screen.app.area
    assert isinstance(area, RunsScreen)
    return [row["id"] for row in area.table.source.window(0, 9)]


async def test_a_mark_and_a_step_stay_in_order(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        first, second, third, *_ = ids(screen)
        await typed(screen, "space", "down", "space")
        assert list(screen.app.area.table.marked) == [first, third]
        assert second not in screen.app.area.table.marked
        await typed(screen, "escape", "home", "space", "up", "up", "space", "space")
        assert list(screen.app.area.table.marked) == [second]


async def test_words_and_editing_keys_stay_in_order(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await typed(screen, "slash", *"awk", "backspace", *"q!", "left", "delete", "enter", "space")
        assert screen.app.area.source.filter == "awq"
        assert "1 marked" in shown.splitlines()[-1] and len(screen.app.area.table.marked) == 1


async def test_enter_opens_the_row_it_was_pressed_on(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        chosen = ids(screen)[2]
        await typed(screen, "down", "down", "enter", "down", "down")
        assert screen.app.current_mode == "compare"
        await typed(screen, "1")
        assert screen.app.area.table.row["id"] == chosen, "the keys behind it went to the screen it opened"


async def test_keys_behind_a_key_that_opens_a_box_go_to_the_box(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await typed(screen, "ctrl+p", *"filter the", "enter", *"awq", "enter")
        assert screen.app.area.source.filter == "awq"
        await typed(screen, "o", "space", "enter", "down")
        assert "bits" not in [column.key for column in screen.app.area.table.columns]
        assert screen.app.area.table.cursor == 1


async def test_areas_are_gone_through_in_order(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await typed(screen, "3", "down", "4", "5", "1", "space")
        assert screen.app.current_mode == "runs"
        assert len(screen.app.area.table.marked) == 1
        await typed(screen, "3")
        assert screen.app.area.table.cursor == 1
