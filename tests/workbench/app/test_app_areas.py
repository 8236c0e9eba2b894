"""Jobs, checkpoints, the new-job form, palette, help and leaving the app."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core import jobs
from core.store import Store
from workbench import actions, job_form
from workbench.job_faults import faults
from workbench.screens.jobs import JobsScreen


async def test_jobs_show_state_progress_and_the_log_of_the_one_chosen(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("3")
        lines = screen.lines()
        assert (
            "quantize    lance-mini · int4-awq" in lines[2]
            and "running" in lines[2]
            and "████····  50 %" in lines[2]
        )
        assert "calibrate" in lines[3] and "succeeded" in lines[3]
        assert "log of 2 ─ following" in shown and "layer 199 done" in shown and "layer 0 done" not in shown


async def test_scrolling_the_log_up_pauses_and_the_end_follows_again(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("3", "enter")
        assert "paused" in await screen.press("k", "pageup")
        log = jobs.log_path(screen.app.store, 2)
        with log.open("a") as stream:
            stream.write("a new line\n")
        await screen.pilot.pause(0.4)
        assert "a new line" not in await screen.settle()
        await screen.press("G")
        shown = await screen.until("a new line")
        assert "following" in shown
        await screen.press("enter")
        assert "log of 1 ─ complete" in await screen.press("down")


async def test_cancelling_asks_and_then_kills(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("3", "x")
        assert "job 2 is asked to stop; x again kills it" in shown and "cancelling" in shown
        assert "job 2 is killed" in await screen.press("x")
        assert screen.app.store.value("SELECT kill_requested FROM jobs WHERE id = 2") == 1
        assert "already succeeded" in await screen.press("down", "x")


async def test_a_failed_job_is_retried(open_app: Any, database: Path, submitted: list[Path]) -> None:
    with Store.open(database) as store:
        store.execute("UPDATE jobs SET state = 'failed', message = 'out of memory' WHERE id = 2")
    async with open_app(database) as screen:
        shown = await screen.press("3")
        assert "job 2  failed" in shown and "✗ out of memory" in shown
        submitted.clear()
        shown = await screen.press("r")
        assert "job 2 is queued again" in shown and submitted == [database]


async def test_only_active_jobs(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("3", "a")
        assert "calibrate" not in shown and "quantize" in shown and "active only" in shown
        assert "calibrate" in await screen.press("a")


async def test_progress_of_another_process_appears(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("3")
        with Store.open(database) as store:
            store.execute("UPDATE jobs SET progress_done = 3 WHERE id = 2")
        await screen.until("75 %")


async def test_checkpoints_show_their_variants_as_a_tree(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("4")
        lines = shown.splitlines()
        root = next(number for number, line in enumerate(lines) if line.startswith("  lance-mini"))
        assert "├─ lance-mini_int4-awq-g64" in lines[root + 1] and "gone" in lines[root + 1]
        assert "└─ lance-mini_int4-minmax-g64" in lines[root + 2]


async def test_enter_on_a_variant_shows_its_runs(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("4", "G")
        shown = await screen.press("enter")
        assert "filter: name=lance-mini_int4-minmax-g64" in shown and "1 of 5 runs" in shown


async def test_the_runs_of_a_checkpoint_are_as_many_as_its_row_says(open_app: Any, database: Path) -> None:
    with Store.open(database) as store:  # neither is in the run table that enter leads to
        store.start_run(checkpoint="lance-mini", kind="calibrate")
        store.start_run(checkpoint="lance-mini2", kind="evaluate")
    async with open_app(database) as screen:
        shown = await screen.press("4")
        row = next(line for line in shown.splitlines() if line.startswith("  lance-mini "))
        index = screen.lines().index(row)
        await screen.press(*["j"] * (index - 3))
        shown = await screen.press("enter")
        assert "filter: checkpoint=lance-mini " in shown and f"{row.split()[-1]} of 6 runs" in shown


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "said"),
    [
        (1, "", "error: model.safetensors: truncated\n", "✗ error: model.safetensors: truncated"),
        (
            1,
            '{"problems": ["w: NaN", "v: NaN"], "hashes": {}}',
            "",
            "✗ lance-mini_int4-minmax-g64: w: NaN (and 1 more",
        ),
        (
            0,
            '{"problems": [], "hashes": {"a": "1"}}',
            "",
            "▸ lance-mini_int4-minmax-g64: every tensor was read",
        ),
    ],
)
async def test_verifying_runs_the_command_and_says_what_it_found(
    open_app: Any,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    stdout: str,
    stderr: str,
    said: str,
) -> None:
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", run)
    async with open_app(database) as screen:
        await screen.press("4", "G", "v")
        await screen.until(said)
    assert called[0][1:] == [
        "-m", "workbench", "--db", str(database), "checkpoints", "verify", "--json", "lance-mini_int4-minmax-g64",
    ]  # fmt: skip


async def test_bench_shows_recorded_benchmarks_only(open_app: Any, database: Path) -> None:
    with Store.open(database) as store:
        store.start_run(kind="bench", checkpoint="lance-mini", variant="lance-mini_fast", recipe="fast")
    async with open_app(database) as screen:
        shown = await screen.press("5")
        assert "lance-mini_fast" in shown and "int4" not in shown and "1 run" in shown


async def test_the_form_shows_every_default_and_starts_a_chain(
    open_app: Any, database: Path, submitted: list[Path], embedded: Path, suite: Path
) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("n")
        shown = plain(shown)
        for line in ("what: chain", "recipe: int4-awq", "calibrate on: x2t_image t2i", "device: auto"):
            assert line in shown
        assert "starts: calibrate → quantize → evaluate" in shown
        await screen.press("tab")
        prompts = screen.app.screen.prompts
        prompts["checkpoint"].input.value, prompts["suites"].input.value = str(embedded), str(suite)
        assert "calibrate it on samples of its own kind: give --suite" in plain(await screen.press("ctrl+s"))
        prompts["tasks"].input.value, prompts["files"].input.value = "t2i", str(suite)
        shown = await screen.press("ctrl+s")
        assert "started job 3 → 4 → 5" in shown and "Jobs 4●" in shown
        chain = [jobs.job(screen.app.store, number) for number in (3, 4, 5)]
        assert [job["kind"] for job in chain] == ["calibrate", "quantize", "evaluate"]
        assert [job["depends_on"] for job in chain] == [[], [3], [4]]
        assert chain[1]["spec"]["calibration"] == chain[0]["spec"]["name"]
        # int4-awq has groups of 128, which its linears have no columns for.
        assert chain[2]["spec"]["checkpoint"] == "lance-tiny_int4-best-g64"
        assert submitted == [database]


async def test_the_form_names_a_wrong_value_in_one_line_and_starts_nothing(
    open_app: Any, database: Path, submitted: list[Path]
) -> None:
    async with open_app(database) as screen:
        await screen.press("n", "tab")
        screen.app.screen.prompts["checkpoint"].input.value = "nowhere"
        shown = await screen.press("ctrl+s")
        fault = [line for line in shown.splitlines() if "✗" in line]
        assert len(fault) == 1 and "nowhere" in fault[0]
        assert jobs.unfinished(screen.app.store) == 1 and submitted == []
        assert "New job" not in await screen.press("escape")


async def test_arrow_keys_step_through_known_values_and_each_kind_asks_its_fields(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        await screen.press("n")
        shown = await screen.press("down")
        assert "what: calibrate" in plain(shown) and "recipe:" not in shown and "calibrate on:" in shown
        shown = await screen.press("up", "up")
        assert "what: evaluate" in plain(shown) and "suites:" in shown and "calibrate on:" not in shown


def test_form_values_are_checked_one_by_one(database: Path, embedded: Path, suite: Path) -> None:
    with Store.open(database) as store:
        fields = job_form.fields(store, str(embedded), job_form.look_at(store, str(embedded)))
        values = {field.key: field.default for field in fields if "chain" in field.kinds}
        values |= {
            "group": "0",
            "calibrate_samples": "many",
            "tasks": "x2t_image t2x",
            "device": "gpu",
            "recipe": "int3",
            "suites": str(suite),
        }
        found = {fault.key: fault.message for fault in faults(store, values)}
    assert set(found) == {"group", "calibrate_samples", "tasks", "device", "recipe"}
    assert "wanted a whole number from 1 to 1,000,000" in found["group"] and "t2x" in found["tasks"]


@pytest.fixture
def embedded(tiny_checkpoint: Path) -> Path:
    """A whole checkpoint folder, its name is lance-tiny."""
    return tiny_checkpoint


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite file of prompts."""
    path = tmp_path / "prompts.json"
    path.write_text('{"0001": "A red circle."}')
    return path


def plain(text: str) -> str:
    """``text`` with every run of blanks as one."""
    return " ".join(text.split())


async def test_the_palette_finds_and_runs_an_action_of_another_area(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await screen.press("ctrl+p")
        assert "Commands" in shown and "Runs: Filter the runs" in shown
        row = next(line for line in shown.splitlines() if "Runs: Filter the runs" in line)
        assert row.rstrip(" │").endswith("/")
        shown = await screen.press(*"only active")
        assert "Jobs: All jobs or only active ones" in shown and "Runs: Filter" not in shown
        shown = await screen.press("enter")
        assert "active only" in shown and isinstance(screen.app.screen, JobsScreen)


async def test_the_palette_lists_every_action(open_app: Any, database: Path) -> None:
    from workbench.screens.palette import found

    listed = {choice.key for choice in found("", "runs")}
    assert listed == {action.id for action in actions.ACTIONS if action.screen != "form"}


@pytest.mark.parametrize("area", ["1", "2", "3", "4", "5"])
async def test_help_of_each_area_lists_its_keys_and_commands(
    open_app: Any, database: Path, area: str
) -> None:
    async with open_app(database, (200, 50)) as screen:
        shown = await screen.press(area, "question_mark")
        name = actions.AREAS[int(area) - 1]
        for action in actions.of_screen(name):
            assert action.title in shown, action.id
        assert "Everywhere" in shown and "Find a command" in shown
        assert "Everywhere" not in await screen.press("question_mark")


async def test_leaving_says_that_jobs_keep_running(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("q")
        assert "1 job keeps running" in str(screen.app._exit_renderables)


async def test_nothing_is_repainted_while_nothing_changes(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("3")
        painted: list[object] = []
        screen.app._display = lambda *arguments: painted.append(arguments)  # type: ignore[method-assign]
        await screen.pilot.pause(1.0)
        assert painted == []


def test_every_form_default_is_one_of_the_known_values(database: Path) -> None:
    with Store.open(database) as store:
        name = job_form.chosen(store, None)
        for field in job_form.fields(store, name, job_form.look_at(store, name)):
            assert not field.default or not field.known or field.default in field.known, field.key
    assert os.getcwd() == str(database.parent)  # noqa: PTH109 - opening the form writes nowhere
