"""Removing variants and calibrations in the checkpoints screen: asked first, refused in words, done as by command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from core import jobs
from core.jobs.processes import take_lock
from core.jobs.table import transition
from core.store import Store

VARIANT = "lance-mini_int4-awq-g64"
BEGUN = "lance-mini_int3-g64"


@pytest.fixture
def made(database: Path) -> Path:
    """The small database with the files of a variant and of a calibration, and what a killed job left of another."""
    with Store.open(database) as store:
        transition(store, 2, "failed", since=("running",))
        variant, rows = store.data_dir / "variants" / VARIANT, store.data_dir / "calibrations" / "rows"
        for folder, file in ((variant, "recipe.toml"), (rows, "calibration.json")):
            folder.mkdir(parents=True)
            (folder / file).write_bytes(b" " * 1500)
        store.register_checkpoint(name=VARIANT, path=str(variant), kind="variant", parent="lance-mini",
                                  recipe="int4-awq", details={"calibration": "rows"})  # fmt: skip
        store.register_calibration(name="rows", path=str(rows), checkpoint="lance-mini")
        work = store.data_dir / "variants" / f".{BEGUN}.work"
        work.mkdir()
        (work / "layer-00000.json").write_bytes(b" " * 500)
        store.start_run(kind="quantize", checkpoint="lance-mini", variant=BEGUN, recipe="int3", job_id=2)
        store.execute("UPDATE runs SET state = 'lost' WHERE variant = ?", (BEGUN,))
    return database


async def choose(screen: Any, name: str) -> str:
    """Open the checkpoints and put the cursor on the row of that name."""
    await screen.press("4", "g")
    for _ in range(10):
        row = screen.app.screen.table.row
        if row["name"] == name:
            return str(await screen.settle())
        await screen.press("j")
    raise AssertionError(f"{name} is no row of\n{screen.text()}")


def words(shown: str) -> str:
    """What is said, however it was broken into lines."""
    return " ".join(shown.translate(str.maketrans("│╭╮╰╯─", "      ")).split())


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_a_variant_is_removed_once_that_is_chosen(
    open_app: Any, made: Path, size: tuple[int, int]
) -> None:
    async with open_app(made, size=size) as screen:
        assert "3 variants, 1 calibration" in await choose(screen, VARIANT)
        assert "x remove" in screen.lines()[-1] and "? help" in screen.lines()[-1]
        shown = words(await screen.press("x"))
        path = screen.app.store.data_dir / "variants" / VARIANT
        assert "Remove the variant" in shown and "1.5 kB; 2 runs of it stay, with every output" in shown
        assert str(path) in shown.replace(" ", "") and "Keep it" in shown and "Remove it for good" in shown
        await screen.press("j", "enter")
        shown = await screen.until(f"{VARIANT} removed, 1.5 kB freed")
        assert "2 variants, 1 calibration" in shown and not path.exists()
        assert screen.app.store.checkpoint(VARIANT) is None
        assert screen.app.store.run(3)["variant"] == VARIANT


@pytest.mark.parametrize("keys", [["enter"], ["escape"], ["j", "k", "enter"], ["x", "y", "d", "enter"]])
async def test_nothing_is_removed_unless_that_is_chosen(open_app: Any, made: Path, keys: list[str]) -> None:
    async with open_app(made) as screen:
        await choose(screen, VARIANT)
        shown = await screen.press("x", *keys)
        assert "Remove the variant" not in shown and "freed" not in shown
        assert (screen.app.store.data_dir / "variants" / VARIANT / "recipe.toml").is_file()


async def test_a_calibration_is_a_row_and_says_which_variants_were_made_with_it(
    open_app: Any, made: Path
) -> None:
    async with open_app(made) as screen:
        assert "└─ rows " in await choose(screen, "rows")
        assert screen.app.screen.subject() == "lance-mini"
        assert "rows: a calibration; checkpoints and variants can be verified" in await screen.press("v")
        shown = words(await screen.press("x"))
        assert "Remove the calibration" in shown and f"{VARIANT} was made with it and stays" in shown
        await screen.press("down", "enter")
        shown = await screen.until("rows removed, 1.5 kB freed")
        assert "1 calibration" not in shown and screen.app.store.calibrations() == []


async def test_what_a_killed_job_left_is_a_row_and_can_be_removed(open_app: Any, made: Path) -> None:
    async with open_app(made, size=(100, 24)) as screen:
        shown = await choose(screen, BEGUN)
        row = next(line for line in shown.splitlines() if BEGUN in line)
        assert "never finished" in row and "500 B" in row
        assert f"{BEGUN}: not finished" in await screen.press("v")
        assert "500 B; never finished; 1 layer of it done; no run of it" in words(await screen.press("x"))
        await screen.press("j", "enter")
        shown = await screen.until(f"{BEGUN} removed (never finished; 1 layer of it done), 500 B freed")
        assert "2 variants, 1 calibration" in shown


async def test_what_is_being_made_stays(open_app: Any, made: Path) -> None:
    with Store.open(made) as store:
        store.execute("UPDATE runs SET state = 'running' WHERE variant = ?", (BEGUN,))
        lock = take_lock(store.data_dir / "variants" / f".{BEGUN}.work" / "lock")
    assert lock is not None
    async with open_app(made, size=(100, 24)) as screen:
        shown = await choose(screen, BEGUN)
        assert "in the making" in next(line for line in shown.splitlines() if BEGUN in line)
        await screen.press("x", "j", "enter")
        assert f"✗ {BEGUN}: a job is making it" in await screen.until("✗")
        assert (screen.app.store.data_dir / "variants" / f".{BEGUN}.work" / "layer-00000.json").is_file()
    os.close(lock)


async def test_what_cannot_be_removed_says_why(open_app: Any, made: Path) -> None:
    with Store.open(made) as store:
        number = jobs.submit(store, "evaluate", {"checkpoint": VARIANT})
    async with open_app(made) as screen:
        await choose(screen, "lance-mini")
        assert "lance-mini: a checkpoint; its files are never touched here" in await screen.press("x")
        await choose(screen, VARIANT)
        await screen.press("x", "j", "enter")
        shown = words(await screen.until("✗"))
        assert f"job {number} (evaluate, queued) uses it" in shown
        assert screen.app.store.checkpoint(VARIANT) is not None
