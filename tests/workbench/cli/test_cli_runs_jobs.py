"""``runs``, ``jobs`` and ``checkpoints``: what they print and what they do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import jobs
from core.jobs import processes, table
from core.store import Store
from workbench.cli.main import run_command

ROOT = Path(__file__).parents[3]
HANDLERS = Path(__file__).parents[2] / "core" / "jobs"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "runs.db"
    with Store.open(path) as store:
        facts = {"versions": {"torch": "2.11"}}
        for variant, kl in (("lance-demo_int4-minmax-g128", 0.4), ("lance-demo_int4-awq-g64", 0.03)):
            run_id = store.start_run(
                checkpoint="lance-demo",
                variant=variant,
                suite="demo-x2t",
                device="CPU",
                manifest=facts,
            )
            store.set_scores(run_id, kl=kl, kl_se=0.001, exact=0.5, exact_low=0.4, exact_high=0.6)
            store.add_output(run_id, 0, sample_key="s", text="No, it is 41 %.", expected="41", exact=1.0)
            store.finish_run(run_id)
    yield path
    with Store.open(path) as store:
        active = table.jobs(store, states=table.ACTIVE)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for row in active:
        processes.signal_group(row, signal.SIGKILL)


@pytest.fixture
def call(db: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run_command(["--db", str(db), *arguments]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_WORKBENCH_HANDLERS", "sample_handlers")
    monkeypatch.setenv("PYTHONPATH", str(HANDLERS))
    monkeypatch.syspath_prepend(str(HANDLERS))


def test_runs_list(call: Any) -> None:
    lines = call("runs", "list").splitlines()
    assert lines[0].split() == ["run", "variant", "suite", "exact", "KL"], "empty columns are left out"
    assert lines[1].split() == [
        "2",
        "lance-demo_int4-awq-g64",
        "demo-x2t",
        "50.0",
        "%",
        "±10.0",
        "0.0300",
        "±0.0010",
    ]
    assert [row["id"] for row in json.loads(call("runs", "list", "--json", "--sort", "kl"))] == [2, 1], (
        "best first"
    )
    assert [row["id"] for row in json.loads(call("runs", "list", "--json", "--sort", "kl", "--reverse"))] == [
        1,
        2,
    ]
    assert json.loads(call("runs", "list", "minmax", "--json", "--columns", "id,kl")) == [
        {"id": 1, "kl": 0.4}
    ]
    assert len(call("runs", "list", "--limit", "1").splitlines()) == 2


def test_runs_show_and_tag(call: Any) -> None:
    assert (
        json.loads(call("runs", "tag", "1", "--tags", "floor", "--note", "a|b", "--json"))["tags"] == "floor"
    )
    text = call("runs", "show", "1", "--outputs")
    assert "exact             50.0 % (40.0 to 60.0)" in text or "50.0 % (40.0 to 60.0)" in text
    assert "No, it is 41 %." in text and "floor" in text
    row = json.loads(call("runs", "show", "1", "--outputs", "--json"))
    assert row["outputs"][0]["text"] == "No, it is 41 %." and row["manifest"] == {
        "versions": {"torch": "2.11"}
    }
    call("runs", "tag", "1", "--tags", "")
    assert json.loads(call("runs", "show", "1", "--json"))["tags"] is None


def test_runs_export_to_stdout_and_to_files(call: Any, tmp_path: Path) -> None:
    text = call("runs", "export", "--columns", "id,name,exact")
    assert text.splitlines()[2] == "|   2 | lance-demo_int4-awq-g64     | 50.0 % (40.0 to 60.0) |"
    assert "torch 2.11" in text
    assert call("runs", "export", "--output", str(tmp_path / "table.csv"), "--columns", "id,exact") == ""
    assert (
        tmp_path / "table.csv"
    ).read_text() == "id,exact,exact_low,exact_high\n2,0.5,0.4,0.6\n1,0.5,0.4,0.6\n"
    assert json.loads(call("runs", "export", "--json", "--limit", "1", "--columns", "id")) == [{"id": 2}]
    # Folders that are missing are made, as `compare --out` does.
    call("runs", "export", "--output", str(tmp_path / "new" / "er" / "table.md"))
    assert (tmp_path / "new" / "er" / "table.md").read_text().startswith("| run |")
    call("runs", "export", "--output", str(tmp_path), code=2)
    (tmp_path / "file").write_text("")
    call("runs", "export", "--output", str(tmp_path / "file" / "table.md"), code=1)


def test_jobs_end_to_end(call: Any, db: Path, kinds: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(db) as store:
        good = jobs.submit(store, "nap", {"steps": 2, "checkpoint": "lance-demo"})
        bad = jobs.submit(store, "fails", {"unless": str(db.parent / "fixed")})
        after = jobs.submit(store, "nap", {}, depends_on=bad)
        assert "after 2" in call("jobs", "list", "--active")  # and it starts a supervisor for what waits
        assert json.loads(call("jobs", "wait", str(good), "--json"))["result"]["slept"] == 2
        run_command(["--db", str(db), "jobs", "wait", str(bad)])
        assert "picture.png: no picture; found text" in capsys.readouterr().err
        assert "cancelled" in call("jobs", "list")
        assert call("jobs", "log", str(good)) == "slept well\n"
        assert json.loads(call("jobs", "log", str(good), "--json")) == {"job": good, "line": "slept well"}
        shown = json.loads(call("jobs", "show", str(good), "--json"))
        assert [event["to_state"] for event in shown["events"]][-1] == "succeeded"
        assert "submitted → queued" in call("jobs", "show", str(good))

        (db.parent / "fixed").touch()
        assert call("jobs", "retry", str(bad)) == ""
        assert json.loads(call("jobs", "wait", str(after), "--json"))["state"] == "succeeded"
        call("jobs", "cancel", str(good), code=2)
        call("jobs", "retry", str(good), code=2)


def test_retrying_in_the_background_and_cancelling(call: Any, db: Path, kinds: None) -> None:
    with Store.open(db) as store:
        job_id = jobs.submit(store, "nap", {"steps": 5000})
        jobs.cancel(store, job_id)
        assert json.loads(call("jobs", "retry", str(job_id), "--detach", "--json"))["job"] == job_id
        state = json.loads(call("jobs", "cancel", str(job_id), "--kill", "--json"))["state"]
        assert state in ("cancelling", "cancelled")
        call("jobs", "wait", str(job_id), code=130)
        assert jobs.job(store, job_id)["state"] == "cancelled"


def test_ctrl_c_while_a_verb_waits_cancels_its_job(db: Path, kinds: None) -> None:
    with Store.open(db) as store:
        job_id = jobs.submit(store, "nap", {"steps": 5000})
        jobs.cancel(store, job_id)
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench", "--db", str(db), "jobs", "retry", str(job_id)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while jobs.job(store, job_id)["progress_done"] is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert jobs.job(store, job_id)["state"] == "cancelled"
        assert "naps" in told and told.endswith("interrupted\n") and "Traceback" not in told


def test_checkpoints(call: Any, tiny_checkpoint: Path) -> None:
    names = [row["name"] for row in json.loads(call("checkpoints", "list", "--json"))]
    assert names == ["lance-demo"]
    shown = json.loads(call("checkpoints", "show", str(tiny_checkpoint), "--json"))
    assert shown["name"] == "lance-tiny" and shown["missing"] == []
    assert json.loads(call("checkpoints", "verify", str(tiny_checkpoint), "--json"))["problems"] == []
    call("checkpoints", "show", "no-such", code=2)
    call("checkpoints", "verify", str(tiny_checkpoint.parent), code=1)
