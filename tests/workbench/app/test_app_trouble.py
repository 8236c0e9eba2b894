"""Errors that nothing foresaw in the app: the file system's are one line on it, others end it with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core import removal
from core.store import Store
from workbench.application import WorkbenchApp


async def test_what_the_system_refuses_is_one_line_and_the_app_goes_on(
    open_app: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/closed/variants")

    monkeypatch.setattr(removal, "find", refuse)
    async with open_app(database) as screen:
        await screen.press("4", "G")
        assert "✗ /closed/variants: Permission denied" in await screen.press("x")
        assert "Help" in await screen.press("question_mark")


async def test_a_fault_of_our_own_ends_the_app_with_one_line(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("nobody has it")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(removal, "find", fail)
    with Store.open(database) as store:
        app = WorkbenchApp(store)
        with pytest.raises(KeyError):
            async with app.run_test() as pilot:
                await pilot.press("4", "G", "x")
        assert app.return_code == 1
    said = "".join(segment.text for found in app._exit_renderables for segment in found.segments)
    said += capsys.readouterr().err
    assert "KeyError: 'nobody has it'; this is a fault" in said and "Traceback" not in said
    assert "in fail" in next(tmp_path.glob("lance-workbench-*.txt")).read_text()


async def test_a_folder_that_may_not_be_looked_into_is_named_in_its_row(
    open_app: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("core.checkpoints.describe", refuse)
    async with open_app(database) as screen:
        shown = await screen.press("4")
        assert "permission denied" in next(line for line in shown.splitlines() if "int4-awq" in line)


async def test_a_path_that_may_not_be_looked_at_is_a_fault_of_its_field(
    open_app: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *_: Any) -> Path:
        raise PermissionError(13, "Permission denied", name)

    async with open_app(database) as screen:
        await screen.press("n")
        monkeypatch.setattr("core.checkpoints.resolve", refuse)
        await screen.press("tab", *"/closed/x")
        assert "/closed/x: Permission denied" in " ".join((await screen.press("ctrl+s")).split())
        assert "New job" in screen.text()
        await screen.press("escape")
        assert "New job" in await screen.press("n")


async def test_a_database_that_is_gone_is_said_and_no_job_goes_into_it(
    open_app: Any, database: Path, submitted: list[Path]
) -> None:
    async with open_app(database, size=(120, 30)) as screen:
        database.rename(database.with_name("old.db"))
        await screen.until("was moved, deleted or replaced")
        submitted.clear()
        before = screen.app.store.value("SELECT count(*) FROM jobs")
        await screen.press("n")
        screen.app.screen.prompts["checkpoint"].input.value = "lance-demo"
        await screen.press("ctrl+s")
        assert "✗" in screen.text() and "was moved" in screen.text() and "started job" not in screen.text()
        assert screen.app.store.value("SELECT count(*) FROM jobs") == before and submitted == []


async def test_names_with_brackets_are_names_everywhere(open_app: Any, tmp_path: Path) -> None:
    name = "m [/b] [red]x"
    with Store.open(tmp_path / "runs.db") as store:
        store.register_checkpoint(name=name, path=str(tmp_path / "[/i]"), kind="checkpoint")
        store.register_checkpoint(
            name=f"{name}_int4", path=str(tmp_path / "[/u]"), kind="variant", parent=name
        )
        for recipe, variant, base in (("bf16", None, None), ("int4", f"{name}_int4", 1)):
            run_id = store.start_run(checkpoint=name, variant=variant, recipe=recipe, suite="s[/i]", task="x2t_image",
                                     samples=1, baseline_run_id=base, manifest={})  # fmt: skip
            store.add_output(
                run_id, 0, sample_key="[/b]", task="x2t_image", text=f"[/b]{recipe}", question="[/b]?"
            )
            store.finish_run(run_id)
    async with open_app(tmp_path / "runs.db", size=(100, 30)) as screen:
        assert f"Run 2 · {name}_int4" in await screen.press("t")
        await screen.press("escape", "enter")
        assert "[/b]int4" in screen.text() and "[/b]?" in screen.text()
        assert name in await screen.press("4", "G")
        assert f"{name}_int4" in await screen.press("x")
        assert f"{name}_int4 removed" in await screen.press("j", "enter")
        assert name in await screen.press("n")


async def test_a_look_at_the_database_that_comes_while_the_app_is_left_tells_no_screen(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        app = screen.app
    database.rename(database.with_name("old.db"))
    assert not app.screen_stack
    app._poll()
