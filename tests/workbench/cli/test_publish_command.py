"""``checkpoints publish`` as a person types it: what is refused at once, what is told, and the job that is queued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from core import jobs
from core.demo import CHECKPOINT
from core.jobs import kinds
from core.store import Store
from workbench.cli import checkpoint_publish
from workbench.cli.main import run_command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    monkeypatch.setattr(jobs, "ensure_supervisor", lambda store: None)

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["--db", str(tmp_path / "runs.db"), "checkpoints", "publish", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_dry_run_lists_files_with_sizes_and_makes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    code, out, err = run("lance-demo", "me/small", "--dry-run")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    weights = CHECKPOINT / "model.safetensors"
    assert ["model.safetensors", f"{weights.stat().st_size / 1e6:.1f}", "MB"] in lines
    assert ["repository", "me/small", "(private)"] in lines and ["branch", "main"] in lines
    assert ["files", str(len(list(CHECKPOINT.iterdir())))] in lines
    assert "note: not published, as it lies beside the folder: " in out
    told = json.loads(run("lance-demo", "me/small", "--dry-run", "--public", "--revision", "v1", "--json")[1])
    assert told["files"] == {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert (told["visibility"], told["revision"], told["repository"]) == ("public", "v1", "me/small")
    assert told["size_bytes"] == sum(told["files"].values()) and told["remarks"]
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_queued_that_needs_no_gpu(run: Run, tmp_path: Path) -> None:
    code, out, err = run("lance-demo", "me/small", "--detach", "--json")
    assert code == 0, err
    folder = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    assert run(folder, "me/two", "--public", "--revision", "v1", "--detach")[0] == 0
    with Store.open(tmp_path / "runs.db") as store:
        first, second = jobs.job(store, json.loads(out)["job"]), jobs.job(store, 2)
    assert (first["kind"], first["device"]) == ("publish", "cpu")
    assert first["spec"] == {
        "checkpoint": "lance-demo", "repo": "me/small", "public": False, "revision": None, "device": "cpu"
    }  # fmt: skip
    assert kinds.what("publish", first["spec"]) == "lance-demo · me/small"
    assert second["spec"]["checkpoint"] == str(folder)
    assert (second["spec"]["public"], second["spec"]["revision"]) == (True, "v1")
    assert "hf_nobodys" not in json.dumps([first, second], default=str)


def test_what_is_plainly_wrong_is_said_before_a_job_is_queued(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    (folder / "train.log").write_text("private")
    for words, code, said in (
        (("lance-demo", "small"), 2, "error: small: names no owner; wanted owner/name"),
        (("lance-dem", "me/small"), 2, "did you mean lance-demo?"),
        ((tmp_path, "me/small"), 1, "no checkpoint: neither llm_config.json"),
        ((folder, "me/small"), 1, "holds train.log, no part of the checkpoint; move that out of the folder"),
        (("lance-demo", "me/small", "--revision", "a b"), 2, "revision 'a b': no name of a branch"),
    ):
        found, out, err = run(*words)
        assert (found, out) == (code, "") and said in err and err.count("\n") == 1
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, _, err = run("lance-demo", "me/small")
    assert code == 2 and "me/small: no token to write with; `hf auth login` keeps one" in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = run("lance-demo", "me/small")
    assert code == 3 and "HF_HUB_OFFLINE is set" in err
    assert not (tmp_path / "runs.db").exists()


def test_where_it_is_now_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {
        "commit": "https://huggingface.co/me/small/commit/1", "repository": "me/small", "visibility": "private",
        "revision": "main", "files": 8, "sent": ["README.md"], "sent_bytes": 1500, "evaluations": [3, 7],
        "remarks": ["the card names no license"],
    }  # fmt: skip

    def done(*_: Any, show: Callable[[dict[str, Any]], None]) -> None:
        show({"result": result})

    monkeypatch.setattr(checkpoint_publish, "run_job", done)
    code, out, _ = run("lance-demo", "me/small")
    assert code == 0 and [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["commit", "https://huggingface.co/me/small/commit/1"],
        ["repository", "me/small (private)"],
        ["branch", "main"],
        ["sent", "1 of 8 files, 1.5 kB"],
        ["evaluations", "3 7"],
        ["note:", "the card names no license"],
    ]
