"""Publishing from the checkpoints screen: the dialog shows what would go where, and enter queues the job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from core import jobs
from core.checkpoints.describe import OWN_FILE, describe
from core.demo import CHECKPOINT
from core.jobs.table import transition
from core.store import Store
from workbench.screens.publish import usual

VARIANT = "lance-mini_int4-awq-g64"


@pytest.fixture
def made(database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small database with the files of a variant, an evaluation of them, and a calibration."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    with Store.open(database) as store:
        transition(store, 2, "failed", since=("running",))
        folder = store.data_dir / "variants" / VARIANT
        shutil.copytree(CHECKPOINT, folder)
        config = json.loads((folder / "llm_config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
        (folder / OWN_FILE).write_text(json.dumps({"name": VARIANT, "source_path": "/elsewhere"}))
        store.register_checkpoint(
            name=VARIANT, path=str(folder), kind="variant", parent="lance-mini", recipe="int4-awq"
        )
        run = store.start_run(kind="evaluate", checkpoint="lance-mini", variant=VARIANT, suite="demo-x2t",
                              manifest={"fingerprints": {"variant": describe(folder).fingerprint}})  # fmt: skip
        store.set_scores(run, kl=0.031, kl_se=0.002)
        store.finish_run(run)
        store.register_calibration(name="rows", path=str(folder), checkpoint="lance-mini")
    return database


def words(shown: str) -> str:
    """What is said, however it was broken into lines."""
    return " ".join(shown.replace("│", " ").split())


async def choose(screen: Any, name: str) -> str:
    """Open the checkpoints and put the cursor on the row of that name."""
    await screen.press("4", "g")
    for _ in range(10):
        if screen.app.screen.table.row["name"] == name:
            return str(await screen.settle())
        await screen.press("j")
    raise AssertionError(f"{name} is no row of\n{screen.text()}")


def queued(screen: Any) -> list[dict[str, Any]]:
    return [row["spec"] for row in jobs.jobs(screen.app.store) if row["kind"] == "publish"]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_enter_publishes_privately(
    open_app: Any, made: Path, size: tuple[int, int], submitted: list[Path]
) -> None:
    async with open_app(made, size=size) as screen:
        await choose(screen, VARIANT)
        assert "u publish" in screen.lines()[-1] and "? help" in screen.lines()[-1]
        await screen.press("u")
        shown = await screen.until("files, ")
        run = screen.app.store.runs("kind=evaluate", limit=1)[0]["id"]
        assert f"Publish the variant {VARIANT}" in shown and f"the scores of runs {run} on its card" in shown
        assert "only you, and whom you let in, will see it" in shown
        assert f"· {OWN_FILE} is published without the paths of this machine" in shown
        count = len(list((screen.app.store.data_dir / "variants" / VARIANT).iterdir()))
        assert f" {count} files, " in shown
        await screen.press("pagedown", "pagedown")
        assert any("model.safetensors" in line and " MB" in line for line in screen.lines())
        await screen.press("m", "e")
        assert f"me/{VARIANT}" in screen.text()
        number = len(jobs.jobs(screen.app.store)) + 1
        assert f"started job {number}; 3 shows its progress" in await screen.press("enter")
        assert queued(screen) == [
            {
                "checkpoint": VARIANT,
                "repo": f"me/{VARIANT}",
                "public": False,
                "revision": None,
                "device": "cpu",
            }
        ]
        assert submitted == [made]


async def test_public_is_chosen_in_its_own_field(open_app: Any, made: Path) -> None:
    async with open_app(made) as screen:
        await choose(screen, VARIANT)
        await screen.press("u")
        await screen.until("files, ")
        assert "everybody" not in await screen.press("m", "e", "down", "up", "up")
        assert "everybody will see it" in await screen.press("tab", "down")
        assert "only you" in await screen.press("down")
        await screen.press("up", "x", "enter")
        assert "✗ visibility 'publicx': wanted private or public" in screen.text() and queued(screen) == []
        await screen.press("backspace", "enter")
        assert [spec["public"] for spec in queued(screen)] == [True]


@pytest.mark.parametrize("keys", [["escape"], ["m", "e", "tab", "down", "escape"], ["q", "x", "escape"]])
async def test_escape_publishes_nothing(open_app: Any, made: Path, keys: list[str]) -> None:
    async with open_app(made) as screen:
        await choose(screen, VARIANT)
        await screen.press("u")
        await screen.until("files, ")
        assert "Publish the variant" not in await screen.press(*keys)
        assert queued(screen) == []


async def test_what_is_wrong_is_said_in_the_dialog(
    open_app: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(made) as screen:
        await choose(screen, VARIANT)
        await screen.press("u")
        await screen.until("files, ")
        assert f"✗ /{VARIANT}: no name of a repository" in words(await screen.press("enter"))
        assert "✗" not in await screen.press("m", "e")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert "no token to write with; `hf auth login` keeps one" in words(await screen.press("enter"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in words(await screen.press("enter"))
        await screen.press("escape")
        stray = screen.app.store.data_dir / "variants" / VARIANT / "train.log"
        stray.write_text("private")
        await screen.press("u")
        await screen.until("holds")
        assert "holds train.log, no part of the variant; move that out of the folder" in words(screen.text())
        assert "Publish the variant" in await screen.press("m", "e", "enter")
        assert "holds train.log" in words(screen.text()) and queued(screen) == []


async def test_calibrations_cannot_be_published(open_app: Any, made: Path) -> None:
    async with open_app(made) as screen:
        await choose(screen, "rows")
        assert "rows: a calibration; checkpoints and variants can be published" in await screen.press("u")


async def test_help_lists_it_with_its_command(open_app: Any, made: Path) -> None:
    async with open_app(made) as screen:
        await screen.press("4")
        shown = await screen.press("question_mark")
        line = next(line for line in shown.splitlines() if "Publish it on the Hugging Face Hub" in line)
        assert " u " in line and "checkpoints publish" in line


def test_the_name_offered_is_the_last_one_or_of_its_owner(made: Path) -> None:
    with Store.open(made) as store:
        assert usual(store, "mine") == "/mine"
        jobs.submit(store, "publish", {"checkpoint": "mine", "repo": "me/first"})
        assert usual(store, "mine") == "me/first" and usual(store, "other") == "me/other"
        jobs.submit(store, "publish", {"checkpoint": "other", "repo": "team/second"})
        assert usual(store, "mine") == "me/first" and usual(store, "third") == "team/third"
