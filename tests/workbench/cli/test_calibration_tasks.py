"""``calibrations run`` on several tasks and files: what it foretells, refuses and records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.evaluation import suites
from workbench.cli.main import run_command


@pytest.fixture
def run(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")

    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        found = run_command(["--db", str(tmp_path / "runs.db"), "calibrations", *words])
        out, err = capfd.readouterr()
        assert found == code, err
        return str(out if code == 0 else err)

    return run


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_dry_run_foretells_what_a_calibration_sees(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = ["--suite", write(tmp_path, "t2i.json", {"0.png": "A red cube.", "1.png": "A ball."})]
    words += ["--suite", write(tmp_path, "ask.txt", "What is a cube?\nWhat is a ball?\n")]
    words += ["--device", "cpu", "--dtype", "float32", "--height", "32", "--width", "32", "--steps", "3"]
    words += ["--max-new-tokens", "3", "--tasks", "t2i,text,mixed", "--rows", "16"]
    told = json.loads(run("run", str(tiny_checkpoint), *words, "--dry-run", "--json"))
    assert told["tasks"] == ["t2i", "text", "mixed"] and told["samples"] == 4
    assert sum(told["memory"].values()) == told["device_bytes"] == told["host_bytes"]
    table = run("run", str(tiny_checkpoint), *words, "--dry-run")
    assert "noisy" in table and "rows memory" in table
    assert not (tmp_path / "runs.db").exists(), "nothing was done"
    done = json.loads(run("run", str(tiny_checkpoint), *words, "--json"))["result"]
    shown = json.loads(run("show", done["calibration"], "--json"))
    assert shown["roles"] == told["tokens"]
    assert shown["evaluated"] == []
    printed = run("show", done["calibration"])
    assert printed.index("mixed") < printed.index("layers.0.self_attn.q_proj")


def test_evaluated_samples_are_refused_and_recorded_if_forced(
    run: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    prompt = suites.load("demo-t2i").samples[0].prompt
    words = ["--suite", write(tmp_path, "mine.json", {"0.png": prompt}), "--name", "forced", "--steps", "1"]
    words += ["--device", "cpu", "--height", "32", "--width", "32"]
    said = run("run", str(tiny_checkpoint), *words, code=2)
    assert "mine.json: sample 0 is evaluated on, in demo-t2i" in said and said.count("\n") == 1
    run("run", str(tiny_checkpoint), *words, "--force")
    assert json.loads(run("show", "forced", "--json"))["evaluated"] == ["t2i/0"]
    assert "evaluated on too, which was forced: t2i/0" in run("show", "forced")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "t2x"], "task 't2x' cannot be calibrated; tasks are x2t_image, t2i"),
        (["--tasks", "mixed"], "16 samples of 0 tasks"),
        (["--tasks", "t2v", "--frames", "125", "--dry-run"], "125 frames asked for; wanted 1 to 121"),
        (["--tasks", "i2v", "--frames", "3", "--dry-run"], "3 frames asked for; wanted 5 to 121"),
        (["--resolution", "4k", "--dry-run"], "4k: no such resolution"),
        (["--tasks", "t2i", "--height", "100", "--dry-run"], "height 100: wanted a multiple of 16 px"),
    ],
)
def test_mistakes_are_told_in_a_line(run: Any, words: list[str], message: str) -> None:
    said = run("run", "lance-demo", *words, code=2)
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
