"""``checkpoints random`` and ``checkpoints fetch`` as a person types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import fetch as fetching
from core.checkpoints.describe import OWN_FILE
from core.checkpoints.fetch import Choice, Fetched
from core.checkpoints.listing import Listing, RemoteFile
from core.demo import CHECKPOINT
from core.errors import RetryLater
from workbench.cli.main import run_command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path | int) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["--db", str(tmp_path / "runs.db"), "checkpoints", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_random_checkpoint_is_known_by_its_name(run: Run, golden: Path, tmp_path: Path) -> None:
    tiny = ("--size", "tiny", "--layers", 1, "--dtype", "BF16", "--tokenizer", golden / "tokenizer_tiny")
    code, out, err = run("random", tmp_path / "made", *tiny, "--shard-gb", 0.0005, "--json")
    assert code == 0, err
    fields = json.loads(out)
    assert (fields["name"], fields["missing"]) == ("lance-random-tiny", [])
    assert list(Path(fields["path"]).glob("model-*-of-*.safetensors"))
    assert run("verify", "lance-random-tiny")[0] == 0
    code, out, err = run("random", tmp_path / "other", *tiny)
    assert (code, out) == (2, "")
    assert "lance-random-tiny: is registered already" in err and not (tmp_path / "other").exists()
    assert run("random", tmp_path / "other", *tiny, "--name", "second")[0] == 0
    assert run("show", "second", "--json")[0] == 0


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("random", tmp_path / "made", "--layout", "video", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert round(plan["files"]["Lance_Random/model.safetensors"] / 1e9, 1) == 28.4
    assert plan["name"] == "lance-random-3b-video"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_size(run: Run, tmp_path: Path) -> None:
    code, out, err = run("random", tmp_path / "made", "--size", "70b")
    assert (code, out, err) == (2, "", "error: 70b: no such size; known are 3b, tiny\n")


def test_what_was_fetched_is_registered(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def fetch(repo: str, model: str | None, **options: object) -> Fetched:
        asked.update(options, repo=repo, model=model)
        return Fetched(repo, "4" * 40, tiny_checkpoint, 10, 7)

    monkeypatch.setattr(fetching, "fetch", fetch)
    code, out, err = run(
        "fetch", "--model", "Lance_3B", "--revision", "main", "--out", tmp_path / "own", "--json"
    )
    assert code == 0, err
    assert (asked["repo"], asked["model"]) == ("bytedance-research/Lance", "Lance_3B")
    assert (asked["revision"], asked["patterns"], asked["out"]) == ("main", (), tmp_path / "own")
    fields = json.loads(out)
    assert (fields["name"], fields["revision"], fields["fetched_bytes"]) == ("lance-tiny", "4" * 40, 7)
    assert "lance-tiny" in run("list")[1]


def test_a_partial_fetch_is_no_checkpoint_yet(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "part", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(
        fetching, "fetch", lambda repo, model, **_: Fetched(repo, None, tmp_path / "part", 1, 1)
    )
    code, out, _ = run("fetch", "--allow", "*.json")
    assert code == 0
    assert "not registered" in out and "no checkpoint" in out
    code, _, err = run("fetch")
    assert code == 1 and "no checkpoint" in err


def test_a_dry_fetch_and_a_failed_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing("me/mine", "5" * 40, {"a.json": RemoteFile(2_000_000, None)})
    monkeypatch.setattr(
        fetching, "look_up", lambda repo, model, **_: Choice(listing, ".", ["a.json"], 1_000_000)
    )
    code, out, _ = run("fetch", "me/mine", "--dry-run")
    assert code == 0
    assert "2.0 MB" in out and "1.0 MB" in out and "5" * 40 in out

    def fail(repo: str, model: str | None, **_: object) -> Fetched:
        raise RetryLater(f"{repo}: the Hub answered 503; try again later")

    monkeypatch.setattr(fetching, "fetch", fail)
    code, out, err = run("fetch", "me/mine")
    assert (code, out, err) == (3, "", "error: me/mine: the Hub answered 503; try again later\n")


def test_a_copy_does_not_take_the_name_of_the_embedded_checkpoint(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(CHECKPOINT, copy)
    code, out, err = run("add", copy)
    assert (code, out) == (2, "") and str(CHECKPOINT) in err
    record = json.loads((copy / OWN_FILE).read_text())
    (copy / OWN_FILE).write_text(json.dumps(record | {"name": "mine"}))  # as the error says
    assert run("add", copy)[0] == 0
    assert str(copy) in run("show", "mine")[1]


def test_a_fault_is_told_once_and_names_its_file_once(run: Run, golden: Path, tmp_path: Path) -> None:
    tiny = ("--size", "tiny", "--layers", 1, "--dtype", "BF16", "--tokenizer", golden / "tokenizer_tiny")
    assert run("random", tmp_path / "made", *tiny)[0] == 0
    file = tmp_path / "made" / "Lance_Random" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"surplus": torch.zeros(1)}, file)
    code, out, err = run("verify", "lance-random-tiny")
    assert code == 1 and "problem" not in out and err.count("surplus") == err.count(str(file)) == 1
