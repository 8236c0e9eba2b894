"""The main job from the command line to the database: real processes, the embedded checkpoint, a few samples."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FEW = {"demo-x2t": 6, "demo-t2i": 1}

SMALL_DEMO = (
    "import sys\n"
    "from workbench.cli import demo\n"
    f"demo.SUBSET = {FEW!r}\n"
    "demo.CALIBRATION_SAMPLES = 4\n"
    "from workbench.cli.main import run_command\n"
    "sys.exit(run_command(sys.argv[1:]))\n"
)
"""The demo's own command with fewer samples, so that it fits a test."""


def start(db: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_DEMO, "--db", str(db), *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def command(db: Path, *arguments: str) -> Any:
    """Run a command with ``--json`` and return what it printed."""
    process = start(db, *arguments, "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    db = tmp_path_factory.mktemp("demo") / "runs.db"
    return db, command(db, "demo")


def test_every_job_succeeds_and_every_run_is_recorded(finished: tuple[Path, dict[str, Any]]) -> None:
    db, result = finished
    assert [job["state"] for job in command(db, "jobs", "list", "--all")] == ["succeeded"] * len(
        result["jobs"]
    )
    names = {run["name"] for run in result["runs"]}
    assert names == {
        "lance-demo_bf16", "lance-demo_int4-minmax-g128", "lance-demo_int4-awq-g128", "lance-demo_int4-awq-g64",
    }  # fmt: skip
    for run in result["runs"]:
        assert run["state"] == "succeeded" and run["samples"] == FEW[run["suite"]]
        outputs = command(db, "runs", "show", str(run["id"]), "--outputs")["outputs"]
        assert len(outputs) == run["samples"]
        for output in outputs:
            assert output["text"] if run["task"] == "x2t_image" else output["output_media"]


def test_variants_run_quantized_and_are_scored_against_bf16(finished: tuple[Path, dict[str, Any]]) -> None:
    db, result = finished
    by_id = {run["id"]: run for run in result["runs"]}
    for run in result["runs"]:
        enforced = command(db, "runs", "show", str(run["id"]))["manifest"]["enforcement"]
        if run["variant"] is None:
            assert enforced["swapped"] == 0 and run["kl"] is None
            continue
        assert enforced["swapped"] == enforced["targets"] == 56
        assert enforced["bytes_held"] == enforced["bytes_stored"]
        base = by_id[run["baseline_run_id"]]
        assert base["recipe"] == "bf16" and base["suite"] == run["suite"]
        if run["task"] == "x2t_image":
            assert run["kl"] > 0 and 0 <= run["exact_low"] <= run["exact"] <= run["exact_high"] <= 1
        else:
            assert run["psnr"] > 0 and run["velocity"] > 0


def test_table_is_exported(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    db, result = finished
    path = tmp_path / "table.md"
    process = start(db, "runs", "export", "--output", str(path), "kind=evaluate")
    assert process.wait(timeout=60) == 0
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == len(result["runs"]) + 2


def test_answering_with_a_variant(finished: tuple[Path, dict[str, Any]], golden: Path) -> None:
    db, _ = finished
    picture = str(golden / "media" / "img1.png")
    answered = command(
        db, "generate", "--task", "x2t_image", "--image", picture, "--prompt", "What colour is the circle?",
        "--checkpoint", "lance-demo_int4-awq-g64",
    )  # fmt: skip
    assert answered["text"]


def test_killed_worker_leaves_a_sound_database_and_runs_again(finished: tuple[Path, dict[str, Any]]) -> None:
    """SIGKILL an evaluation in the middle; the database holds, and a retry ends well."""
    db, _ = finished
    process = start(
        db, "evaluate", "lance-demo_int4-awq-g64", "--suite", "demo-x2t", "--limit", "40", "--json"
    )
    worker = None
    deadline = time.monotonic() + 120
    while worker is None and time.monotonic() < deadline:
        time.sleep(0.2)
        rows = command(db, "jobs", "list")
        worker = next(
            (job["pid"] for job in rows if job["state"] == "running" and job["progress_done"]), None
        )
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    with sqlite3.connect(db) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM runs WHERE state = 'running'").fetchone() == (0,)
    lost = max(command(db, "jobs", "list", "--all"), key=lambda job: job["id"])
    assert lost["state"] == "lost"
    command(db, "jobs", "retry", str(lost["id"]))
    assert command(db, "jobs", "wait", str(lost["id"]))["state"] == "succeeded"
