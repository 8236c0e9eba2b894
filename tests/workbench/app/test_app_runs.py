"""The run table: what is on screen, and that only what is on screen is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.store import Store
from workbench.application import WorkbenchApp
from workbench.screens.runs import RunsScreen
from workbench.widgets.table import Table


def table_of(app: WorkbenchApp) -> Table:
    return app.screen.query_one(Table)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_first_screen_shows_areas_runs_and_keys(
    open_app: Any, database: Path, size: tuple[int, int]
) -> None:
    async with open_app(database, size) as screen:
        lines = screen.lines()
        assert (
            lines[0].startswith(" Runs  Compare  Jobs 1●  Checkpoints  Bench")
            and "lance-workbench" in lines[0]
        )
        assert "5 runs" in lines[1]
        assert [name for name in ("variant", "bits", "size", "exact", "KL") if name in lines[2]] != []
        assert "lance-mini_int4-awq-g64" in lines[3]
        assert "enter open" in lines[-1] and "? help" in lines[-1]
        assert "run 5 · int4-awq · demo-t2i t2i" in lines[-2]
        assert all(len(line) <= size[0] for line in lines)


async def test_numbers_align_on_the_decimal_point_and_intervals_stand_beside(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        rows = [line for line in screen.lines() if "±" in line]
        assert any("83.3 % ±10.0" in line and "0.0310 ±0.0020" in line for line in rows)
        assert len({line.index("%") for line in rows}) == 1
        assert len({line.index("0.0310" if "0.0310" in line else "0.4120") for line in rows}) == 1
        size = [line.index(" MB") for line in screen.lines() if " MB" in line]
        assert len(set(size)) == 1


async def test_the_best_figure_of_a_suite_is_bold(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        bold = [
            segment.text.strip()
            for strip in screen.app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None and segment.style.bold
        ]
        assert "83.3 % ±10.0" in bold and "0.0310 ±0.0020" in bold
        assert "66.7 % ±15.0" not in bold


async def test_cursor_keys_move_and_the_line_below_describes_the_run(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        assert "run 3 · int4-awq · demo-x2t" in await screen.press("j", "down")
        assert "run 4 · bf16" in await screen.press("k")
        assert "run 1 · bf16" in await screen.press("G")
        assert "run 5" in await screen.press("g")
        assert "run 1 · bf16" in await screen.press("pagedown")


async def test_columns_move_sideways_while_the_first_stays(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        heading = screen.lines()[2]
        assert heading.endswith("›") and "‹" not in heading
        await screen.press(*["right"] * 9)
        heading = screen.lines()[2]
        assert heading.lstrip().startswith("variant") and "‹" in heading and "exact" not in heading
        await screen.press(*["left"] * 9)
        assert "‹" not in screen.lines()[2]


async def test_sorting_by_the_column_under_the_cursor_and_back(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press(*["right"] * 3, "s")
        assert "exact▾" in screen.lines()[2]
        assert next(row for row in screen.lines() if "±" in row and "%" in row).count("83.3") == 1
        await screen.press("s")
        assert "exact▴" in screen.lines()[2]
        assert "66.7" in next(row for row in screen.lines() if "%" in row)


async def test_filtering_while_typing_and_taking_it_away(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("slash", *"minmax")
        shown = await screen.until("lance-mini_int4-minmax-g64")
        await screen.pilot.pause(0.2)
        shown = await screen.settle()
        assert shown.count("lance-mini_") == 1
        shown = await screen.press("enter")
        assert "filter: minmax" in shown and "1 of 5 runs" in shown
        shown = await screen.press("slash", "escape")
        assert "5 runs" in shown and "filter" not in shown.splitlines()[1]


async def test_a_wrong_filter_is_one_line_and_the_table_stays(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("slash", *"nope<3", "enter")
        assert "unknown column" in shown and "Traceback" not in shown
        assert "lance-mini_int4-awq-g64" in shown


async def test_only_a_term_on_the_kind_shows_runs_that_are_no_evaluations(
    open_app: Any, database: Path
) -> None:
    with Store.open(database) as store:
        store.start_run(checkpoint="mankind", kind="calibrate")
    async with open_app(database) as screen:
        assert "No run passes this filter" in await screen.press("slash", *"mankind", "enter")
        assert "1 of 5 runs" in await screen.press("slash", *" kind=calibrate", "enter")


async def test_a_filter_that_nothing_passes_says_so(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        assert "No run passes this filter" in await screen.press("slash", *"zzz", "enter")


async def test_marks_count_in_the_key_bar_and_escape_clears_them(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("down", "down", "space", "space")
        assert "2 marked" in screen.lines()[-1]
        assert sum(line.startswith("●") for line in shown.splitlines()) == 2
        assert "marked" not in await screen.press("escape")


async def test_only_columns_that_differ(open_app: Any, database: Path) -> None:
    async with open_app(database, (200, 50)) as screen:
        assert "device" in screen.text() or table_of(screen.app).columns
        before = {column.key for column in table_of(screen.app).columns}
        await screen.press("d")
        after = {column.key for column in table_of(screen.app).columns}
        assert {"samples", "device", "checkpoint"} <= before and not {
            "samples",
            "device",
            "checkpoint",
        } & after
        assert {"name", "exact", "suite"} <= after
        await screen.press("d")
        assert {column.key for column in table_of(screen.app).columns} == before


async def test_empty_columns_are_left_out(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        keys = {column.key for column in table_of(screen.app).columns}
        assert "tags" not in keys and "cosine" not in keys and "psnr" in keys


async def test_choosing_columns(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("o")
        assert "Columns" in shown and "[x] bits" in shown
        await screen.press("space", "enter")
        assert "bits" not in screen.lines()[2] and "size" in screen.lines()[2]
        shown = await screen.press("o")
        assert "[ ] bits" in shown
        await screen.press("escape")
        assert "bits" not in screen.lines()[2]


async def test_export_writes_exactly_the_columns_rows_and_order_shown(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("slash", *"suite:demo-x2t", "enter")
        await screen.press("right", "right", "right", "s", "o", "space", "enter")
        shown = await screen.press("e")
        assert "written" in shown
        (written,) = Path().glob("runs-*.md")
        lines = written.read_text().splitlines()
        titles = [cell.strip() for cell in lines[0].strip("|").split("|")]
        assert titles == [column.title for column in table_of(screen.app).columns]
        assert "bits" not in titles
        names = [line.split("|")[1].strip() for line in lines[2:] if line.startswith("|")]
        assert names == ["lance-mini_int4-awq-g64", "lance-mini_int4-minmax-g64", "lance-mini_bf16"]
        assert "83.3 % (70.0 to 90.0)" in lines[2] and "torch 2.11.0" in written.read_text()


async def test_tags_and_note_are_kept(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("t")
        assert "Run 5" in shown and "tags:" in shown
        await screen.press(*"best", "tab", *"keep", "enter")
        assert "[best] · keep" in screen.text()
    with Store.open(database) as store:
        assert (store.run(5)["tags"], store.run(5)["note"]) == ("best", "keep")


async def test_copying_a_run_says_how_much_was_sent(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("y")
        assert "copied the run" in shown and "OSC 52" in shown
        assert "lance-mini" in screen.app.clipboard


async def test_calibrations_are_shown_when_asked_for(open_app: Any, database: Path) -> None:
    with Store.open(database) as store:
        store.start_run(kind="calibrate", checkpoint="lance-mini", task="x2t_image", samples=16)
    async with open_app(database) as screen:
        assert "5 runs" in screen.text()
        shown = await screen.press("slash", *"kind:calibrate", "enter")
        assert "run 6 · calibrate" in shown


async def test_an_empty_database_says_what_to_press(
    open_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an export goes to the current folder
    async with open_app(tmp_path / "runs.db") as screen:
        shown = screen.text()
        assert "No runs yet" in shown and "n   start one" in shown
        for key in ("enter", "c", "space", "s", "d", "e", "t", "y", "G", "right"):
            await screen.press(key)
        assert "No runs yet" in screen.text()
        assert "Nothing to compare yet" in await screen.press("2")
        assert "No jobs yet" in await screen.press("3")
        assert "No benchmarks are recorded" in await screen.press("5")


async def test_ten_thousand_runs_are_read_a_window_at_a_time(open_app: Any, many_runs: Path) -> None:
    asked: list[tuple[int, int]] = []

    async with open_app(many_runs) as screen:
        runs = screen.app.screen
        assert isinstance(runs, RunsScreen)
        window = runs.source.window

        def counted(offset: int, limit: int) -> Any:
            asked.append((offset, limit))
            return window(offset, limit)

        runs.source.window = counted  # type: ignore[method-assign]
        height = table_of(screen.app).page
        assert "run 10000 " in screen.text() and "10,000 runs" in screen.text()
        await screen.press(*["down"] * 5)
        assert asked == []
        await screen.press("pagedown", "G", "g")
        assert "run 10000 " in screen.text()
        assert asked and all(limit <= height for _, limit in asked)
        assert asked[-2] == (10_000 - height, height)
        assert len(table_of(screen.app)._rows) <= height


async def test_a_run_finished_elsewhere_appears_and_the_cursor_keeps_its_row(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        await screen.press("down", "down")
        with Store.open(database) as store:
            run_id = store.start_run(kind="evaluate", checkpoint="lance-mini", variant="lance-mini_new", recipe="new",
                                     suite="demo-x2t")  # fmt: skip
            store.finish_run(run_id)
        shown = await screen.until("lance-mini_new")
        assert "run 3 · int4-awq" in shown and "6 runs" in shown
