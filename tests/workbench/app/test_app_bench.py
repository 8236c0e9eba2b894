"""The bench area: runs above, the figures of the one under the cursor below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core import jobs
from core.store import Store
from core.store.measurements import KEY, figure

KERNELS = [
    figure("down", name, value, "us", "how", rows=m, gigabytes=900.0, share=0.3, against=against)
    for m, name, value, against in (
        (1, "bf16", 20.0, 1.0), (16, "bf16", 20.0, 1.0), (1, "int4-g64", 8.0, 2.5), (16, "int4-g64", 40.0, 0.5),
    )
]  # fmt: skip


@pytest.fixture
def measured(database: Path) -> Path:
    """The kernels in one run; two formats end to end, of one job."""
    with Store.open(database) as store:
        common: dict[str, Any] = {"kind": "bench", "device": "a GPU"}
        record = {KEY: KERNELS, "command_line": ["lance-workbench", "bench", "--what", "kernels"]}
        store.finish_run(store.start_run(checkpoint="kernels", suite="kernels", manifest=record, **common))
        for name, rate in (("bf16", 300.0), ("int4-g64", 450.0)):
            run_id = store.start_run(
                checkpoint="lance-mini", recipe=name, suite="end-to-end", job_id=1, **common,
                manifest={KEY: [figure("decode", name, rate, "tokens/s", "batch 1")]},
            )  # fmt: skip
            store.finish_run(run_id)
    return database


async def test_speed_by_rows_and_every_figure(open_app: Any, measured: Path) -> None:
    async with open_app(measured, (120, 40)) as screen:
        shown = await screen.press("5", "G")
        lines = shown.splitlines()
        row = next(line for line in lines if line.startswith("  int4-g64"))
        assert row.split() == ["int4-g64", "2.50█", "0.50▂"]
        detail = next(line for line in lines if line.startswith("  M 16    int4-g64"))
        assert "40.00 us" in detail and "900 GB/s  30 %" in detail and "█" * 24 in detail
        assert "lance-workbench bench --what kernels" in shown


async def test_formats_of_one_job_stand_beside_each_other(open_app: Any, measured: Path) -> None:
    async with open_app(measured) as screen:
        shown = await screen.press("5")
        assert "tokens/s, more is better; batch 1" in shown
        bars = [line.count("█") for line in shown.splitlines() if "████" in line]
        assert bars == [16, 24]


async def test_marked_runs_stand_beside_each_other(open_app: Any, measured: Path) -> None:
    """Two dates, or two devices."""
    with Store.open(measured) as store:
        record = {KEY: [figure("decode", "bf16", 150.0, "tokens/s", "batch 1")]}
        store.finish_run(
            store.start_run(kind="bench", checkpoint="lance-mini", device="an old GPU", manifest=record)
        )
        new, old = (row["id"] for row in store.runs("kind=bench name:lance-mini", "id", False)[::2])
    async with open_app(measured) as screen:
        shown = await screen.press("5", "space", "down", "space")
        assert f"figures of run {new}, {old} " in shown
        bars = {line.split()[0]: line.count("█") for line in shown.splitlines() if "████" in line}
        assert bars == {f"#{new}": 24, f"#{old}": 12}
        shown = await screen.press("escape")
        assert f"figures of run {new}, {old} " not in shown and "figures of run" in shown


async def test_figures_are_exported_as_the_command_does(
    open_app: Any, measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_app(measured) as screen:
        shown = await screen.press("5", "G", "e")
        assert "written" in shown
    (path,) = tmp_path.glob("bench-*.md")
    assert "| down |" in path.read_text() and "lance-workbench bench --what kernels" in path.read_text()


async def test_enter_goes_to_the_figures_and_back(open_app: Any, measured: Path) -> None:
    async with open_app(measured) as screen:
        await screen.press("5", "enter")
        assert screen.app.screen.figures.has_focus
        await screen.press("escape")
        assert screen.app.screen.table.has_focus


async def test_b_starts_a_benchmark(open_app: Any, database: Path, submitted: list[Path]) -> None:
    async with open_app(database) as screen:
        assert "b   measure" in await screen.press("5")
        shown = await screen.press("b")
        assert "started job 3" in shown
        assert jobs.job(screen.app.store, 3)["kind"] == "bench"
    assert submitted == [database]
