"""A measured sensitivity in the app: found from checkpoint, variant and job, sorted, exported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core import jobs
from core.jobs.table import transition
from core.quantization import sensitivity_results
from core.quantization.sensitivity_report import markdown
from core.store import Store
from workbench.cli.main import run_command
from workbench.sensitivity import sections


def result(name: str, recipe: str, *, steps: bool = True) -> dict[str, Any]:
    """A result of twelve layers of two experts, of which the last ones suffer most."""
    scored = {"kl": 0.02, "kl_se": 0.001, "velocity": 0.4, "velocity_se": 0.02}
    groups = [
        {"group": f"layers.{layer}.{expert}.qkv", "bits": 4, "losses": {"4": 0.1}, "nbytes": {"4": 10},
         "scores": scored, "powers": {"kl": 0.02 * (layer + 1), "velocity": 0.16}}
        for layer in range(12) for expert in ("und", "gen")
    ]  # fmt: skip
    found: dict[str, Any] = {
        "format": 1, "name": name, "checkpoint": "lance-mini", "recipe": recipe, "calibration": "both",
        "made_from": ["a", "b", "c"], "measured_on": {"suites": [], "samples": 25, "fingerprint": "d"},
        "device": "cpu", "dtype": "float32", "versions": {}, "groups": groups, "seconds": 41.0,
    }  # fmt: skip
    if steps:
        ratios = [
            {"weight_sqnr": 20.0, "output_sqnr": None if layer == 3 else 30.0 - layer - (expert == "gen")}
            for layer in range(12)
            for expert in ("und", "gen")
        ]
        found["steps"] = [
            {"step": "plain rounding", "scores": scored},
            {"step": "+ awq", "scores": scored | {"kl": 0.0031, "kl_se": 0.0002}},
        ]
        found["layers"] = [
            {"layer": place // 2, "expert": ("und", "gen")[place % 2]} | ratio
            for place, ratio in enumerate(ratios)
        ]
        found["linears"] = [
            {"linear": f"language_model.model.layers.{place // 2}.self_attn.q_proj{('', '_moe_gen')[place % 2]}",
             "group": row["group"], "scheme": "int4 asym g64"} | ratio
            for place, (row, ratio) in enumerate(zip(groups, ratios, strict=True))
        ]  # fmt: skip
    return found


@pytest.fixture
def measured(database: Path) -> Path:
    """Three results: the newest by int4-awq, an older one by int4-minmax without steps, one of another checkpoint."""
    with Store.open(database) as store:
        names = (
            "lance-mini_int4-awq-g64-11111111",
            "lance-mini_int4-minmax-g64-22222222",
            "other_int4-awq-g64-3",
        )
        for age, name in enumerate(names):
            found = result(name, name.partition("_")[2].rpartition("-g64")[0], steps="minmax" not in name)
            sensitivity_results.write(store.data_dir, found)
            os.utime(sensitivity_results.path_of(store.data_dir, name), (1e9 - age, 1e9 - age))
    return database


async def rows(screen: Any) -> list[str]:
    """The lines of the table under its heading."""
    lines = screen.lines()
    table = screen.app.screen.table
    return [line for line in lines[table.region.y + 1 : table.region.bottom] if line.strip()]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_steps_layers_and_both_experts_in_one_look(
    open_app: Any, measured: Path, size: tuple[int, int]
) -> None:
    async with open_app(measured, size) as screen:
        await screen.press("4", "j")
        shown = await screen.press("S")
        assert "lance-mini_int4-awq-g64" in shown and "result 1 of 2" in shown
        assert "plain rounding       0.0200 ±0.0010   0.4000 ±0.0200" in shown
        assert "+ awq                0.0031 ±0.0002" in shown
        assert "19.0 to 30.0 dB  SQNR of outputs, layer by layer" in shown and "18.0 to 29.0 dB" in shown
        assert "25 drawn samples · calibration both · cpu float32 · 41 s" in shown
        assert "Layers 24" in shown and "Groups 24" in shown and "Linears 24" in shown
        assert "? help" in shown and all(len(line) <= size[0] for line in screen.lines())
        help_text = await screen.press("question_mark")
        assert "Where a recipe hurts a checkpoint" in help_text


async def test_sorting_begins_with_what_suffers_most_and_ends_with_what_is_not_known(
    open_app: Any, measured: Path
) -> None:
    async with open_app(measured, (120, 40)) as screen:
        await screen.press("4", "j", "S", "right", "right", "right")
        await screen.press("s")
        assert (await rows(screen))[0].split()[:4] == ["11", "gen", "20.0", "18.0"]
        await screen.press("G")
        assert (await rows(screen))[-1].split()[:4] == ["3", "gen", "20.0", "—"]
        await screen.press("s")
        assert (await rows(screen))[0].split()[:4] == ["0", "und", "20.0", "30.0"]
        # By name, layer 2 comes before layer 10; groups begin with the greatest share.
        await screen.press("tab")
        assert "layers.11.und.qkv" in (await rows(screen))[0] and "5.9 %" in (await rows(screen))[0]
        await screen.press("s", "tab", "s")
        assert [line.split()[0].partition(".")[0] for line in (await rows(screen))[4:8]] == [
            "2",
            "2",
            "3",
            "3",
        ]


async def test_results_are_stepped_through_and_a_variants_own_comes_first(
    open_app: Any, measured: Path
) -> None:
    async with open_app(measured) as screen:
        shown = await screen.press("4", "G", "S")
        assert "lance-mini_int4-minmax-g64" in shown and "result 1 of 2" in shown
        # Measured for a mixed recipe: groups alone.
        assert "plain rounding" not in shown and "Layers" not in shown and "Groups 24" in shown
        shown = await screen.press("right_square_bracket")
        assert "lance-mini_int4-awq-g64" in shown and "plain rounding" in shown
        assert "result 2 of 2" in await screen.press("right_square_bracket")
        shown = await screen.press("escape")
        assert "checkpoint and its variants" in shown


async def test_exports_what_the_command_prints(open_app: Any, measured: Path, capsys: Any) -> None:
    name = "lance-mini_int4-awq-g64-11111111"
    async with open_app(measured) as screen:
        assert "written" in await screen.press("4", "j", "S", "e")
        copied: list[str] = []
        screen.app.copy_to_clipboard = copied.append
        await screen.press("tab", "y")
    (path,) = measured.parent.glob("sensitivity-*.md")
    assert path.read_text() == markdown(result(name, "int4-awq"))
    assert (
        run_command(["--db", str(measured), "variants", "sensitivities", name, "--format", "markdown"]) == 0
    )
    assert capsys.readouterr().out == path.read_text()
    assert copied[0].startswith("| group of linears") and "5.9 %" in copied[0] and "█" not in copied[0]


async def test_a_job_leads_to_what_it_measured(open_app: Any, measured: Path, submitted: list[Path]) -> None:
    with Store.open(measured) as store:
        path = sensitivity_results.path_of(store.data_dir, "other_int4-awq-g64-3")
        job = jobs.submit(store, "sensitivity", {"checkpoint": "other", "recipe": "int4-awq"})
        for state, before in (("starting", "queued"), ("running", "starting"), ("succeeded", "running")):
            transition(store, job, state, since=(before,))
        store.execute("UPDATE jobs SET result = ? WHERE id = ?", (json.dumps({"path": str(path)}), job))
    async with open_app(measured) as screen:
        shown = await screen.press("3", "S")
        assert "other_int4-awq-g64" in shown and "plain rounding" in shown
        assert "log of 3" in await screen.press("escape")
        assert "wanted a sensitivity that succeeded" in await screen.press("down", "S")


def test_a_group_that_no_sample_reaches_has_dashes_and_comes_last() -> None:
    found = result("lance-mini_int4-awq-g64-3", "int4-awq")
    found["groups"][0] |= {"scores": {"kl": None, "kl_se": None}, "powers": {"kl": None, "velocity": None}}
    (_, groups, _) = sections(found)
    last = groups.rows[-1]
    assert last["group"] == "layers.0.und.qkv"
    assert [column.cell(last).split() for column in groups.columns[2:]] == [["—"], ["—"], ["—"]]


async def test_what_is_not_there_or_damaged_is_said(open_app: Any, measured: Path, capsys: Any) -> None:
    folder = measured.with_suffix(".data") / "sensitivities"
    async with open_app(measured) as screen:
        shown = await screen.press("4", "S")
        assert "lance-demo: no sensitivity is measured; n starts a job that does" in " ".join(shown.split())
        (folder / "lance-mini_int4-awq-g64-11111111.json").write_text("{}")
        shown = await screen.press("j", "S")
        assert "damaged" in shown and "delete it and measure again" in " ".join(shown.split())
    assert run_command(["--db", str(measured), "variants", "sensitivities", "nothing"]) == 2
    assert "nothing: no such sensitivity; `variants sensitivities` lists" in capsys.readouterr().err


async def test_without_any_result_the_screen_says_how_to_get_one(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("ctrl+p", *"sort by")
        await screen.app.go_to("sensitivity")
        shown = await screen.settle()
        assert "No sensitivity is measured yet" in shown
        assert "n starts a job that measures one" in await screen.press("e")


def test_the_command_lists_results(measured: Path, capsys: Any) -> None:
    assert run_command(["--db", str(measured), "variants", "sensitivities", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in listed] == ["int4-awq", "int4-minmax", "int4-awq"]
    assert [row["kl"] for row in listed] == [0.0031, None, 0.0031]


def test_the_command_writes_a_result_in_the_format_of_the_files_name(measured: Path, capsys: Any) -> None:
    name = "lance-mini_int4-awq-g64-11111111"
    for ending in ("md", "json"):
        out = measured.parent / f"result.{ending}"
        assert run_command(["--db", str(measured), "variants", "sensitivities", name, "--out", str(out)]) == 0
        assert f"{out} written" in capsys.readouterr().err
    assert (measured.parent / "result.md").read_text().startswith("# Sensitivity of lance-mini to int4-awq")
    assert json.loads((measured.parent / "result.json").read_text())["name"] == name


async def test_small_figures_of_a_single_sample_keep_their_digits(open_app: Any, measured: Path) -> None:
    with Store.open(measured) as store:
        found = result("lance-mini_int4-awq-g64-11111111", "int4-awq")
        for row in (*found["steps"], *found["groups"]):
            row["scores"] = {"kl": 4.9e-6, "kl_se": None, "velocity": 0.4, "velocity_se": None}
        sensitivity_results.write(store.data_dir, found)
    async with open_app(measured) as screen:
        shown = " ".join((await screen.press("4", "j", "S", "tab")).split())
        assert "plain rounding 4.9e-6 0.4000" in shown and "layers.11.und.qkv 4 4.9e-6 0.4000" in shown
