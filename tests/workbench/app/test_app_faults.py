"""What goes wrong is said in one line, and no size of terminal is too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import StoreError
from core.store import Store
from workbench.application import WorkbenchApp
from workbench.widgets.table import Table


async def test_a_database_that_breaks_while_open_ends_the_app_with_one_line(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:

        def broken(offset: int, limit: int) -> Any:
            raise StoreError("runs.db: the database is damaged")

        screen.app.screen.query_one(Table).source.window = broken
        await screen.pilot.resize_terminal(90, 30)
        await screen.pilot.pause()
        assert screen.app.return_code == 1
        assert "error: runs.db: the database is damaged" in str(screen.app._exit_renderables)


async def test_an_action_that_fails_says_why_and_the_app_goes_on(
    open_app: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StoreError("runs.md: no space left on the device")

    monkeypatch.setattr("workbench.exports.write_text", full)
    async with open_app(database) as screen:
        assert "✗ runs.md: no space left on the device" in await screen.press("e")
        assert "run 4" in await screen.press("j")


async def test_runs_that_cannot_be_compared_say_why(open_app: Any, database: Path) -> None:
    with Store.open(database) as store:
        lonely = store.start_run(kind="evaluate", checkpoint="lance-other", recipe="bf16", suite="demo-x2t")
        store.finish_run(lonely)
    async with open_app(database) as screen:
        shown = await screen.press("enter")
        assert "nothing was evaluated against it yet" in " ".join(shown.split())


@pytest.mark.parametrize("size", [(20, 6), (8, 3), (300, 90)])
async def test_every_area_draws_at_any_size(database: Path, size: tuple[int, int]) -> None:
    with Store.open(database) as store:
        app = WorkbenchApp(store)
        async with app.run_test(size=size) as pilot:
            for key in ("2", "N", "m", "m", "h", "escape", "3", "enter", "4", "5", "1", "n", "escape", "question_mark",
                        "escape", "ctrl+p", "escape", "o", "escape", "right", "s"):  # fmt: skip
                await pilot.press(key)
            await pilot.pause()
        assert app.return_code in (0, None)
