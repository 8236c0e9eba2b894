"""Jobs as processes: how they end, what is left of them, and what killing any of them does."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_queue import Queue, until

from core import jobs
from core.jobs import processes, supervisor, table
from core.store import Store
from core.store.clock import now


def _gone(pid: int) -> bool:
    return processes.start_ticks(pid) is None


def test_a_job_runs_reports_and_leaves_its_log(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nap, where = queue.submit("nap", steps=20), queue.submit("where")
    seen: list[str] = []
    queue.supervise()
    row = jobs.wait(queue.store, nap, lambda row: seen.append(row["state"]))
    assert (row["state"], row["result"]) == ("succeeded", {"slept": 20, "job": str(nap)})
    assert (row["progress_done"], row["progress_total"], row["unit"]) == (20, 20, "naps")
    assert queue.log(nap) == "slept well\n"
    assert seen[0] in ("queued", "starting") and seen[-1] == "succeeded"
    states = [event["to_state"] for event in jobs.events(queue.store, nap)]
    assert states == ["queued", "starting", "running", "succeeded"]
    result = jobs.wait(queue.store, where)["result"]
    assert result == {"cwd": str(tmp_path), "session": True, "stdin": "/dev/null"}
    until(lambda: not jobs.is_supervised(queue.store))  # it leaves when there is nothing to do


def test_a_supervisor_is_started_by_whoever_needs_one(queue: Queue) -> None:
    jobs.ensure_supervisor(queue.store)
    assert not jobs.is_supervised(queue.store), "nothing to do, so none"
    job_id = queue.submit("nap")
    jobs.ensure_supervisor(queue.store)
    assert jobs.is_supervised(queue.store)
    assert jobs.wait(queue.store, job_id)["state"] == "succeeded"
    second = subprocess.run(
        supervisor.python_command("supervise", "--db", str(queue.store.path)),
        env=supervisor.python_environment(),
        timeout=20,
        check=False,
    )
    assert second.returncode == 0, "the loser of the election leaves at once"


@pytest.mark.parametrize(
    ("kind", "message", "error_class", "logged"),
    [
        ("fails", "picture.png: no picture; found text", "DataError", "error: picture.png"),
        ("crashes", "ZeroDivisionError: a bug", "ZeroDivisionError", "Traceback (most recent call last)"),
        ("full", "OSError: [Errno 28] No space left on device: 'weights.safetensors'", "OSError", "weights"),
        ("exits", "last words", "WorkerEnded", "last words"),
    ],
)
def test_failures_are_one_line_in_the_row_and_whole_in_the_log(
    queue: Queue, kind: str, message: str, error_class: str, logged: str
) -> None:
    job_id = queue.submit(kind)
    after = jobs.submit(queue.store, "nap", {}, depends_on=job_id)
    queue.supervise()
    row = queue.until_over(job_id)
    assert (row["state"], row["message"], row["error_class"]) == ("failed", message, error_class)
    assert logged in queue.log(job_id)
    assert ("Traceback" in queue.log(job_id)) == (kind in ("crashes", "full"))
    assert queue.until_over(after)["state"] == "cancelled"


def test_killing_a_worker_at_any_moment_loses_the_job_and_nothing_else(queue: Queue) -> None:
    moments = random.Random(7)
    queue.supervise()
    job_id = queue.submit("records")
    for attempt in range(1, 6):
        row = queue.until_state(job_id, "running")
        time.sleep(moments.random() * 0.3)
        os.kill(row["pid"], signal.SIGKILL)
        row = queue.until_over(job_id)
        assert (row["state"], row["attempt"], row["signal"]) == ("lost", attempt, signal.SIGKILL)
        assert queue.store.integrity_errors() == []
        assert queue.store.count_runs("state:running") == 0
        jobs.retry(queue.store, job_id)
        if not jobs.is_supervised(queue.store):
            queue.supervise()
    jobs.cancel(queue.store, job_id)
    assert queue.until_over(job_id)["state"] == "cancelled"
    for run in queue.store.runs():
        outputs = queue.store.outputs(run["id"])
        assert [output["idx"] for output in outputs] == list(range(len(outputs)))
    assert queue.store.count_runs() == queue.store.count_runs("-state=succeeded")


def test_a_killed_worker_takes_its_children_along(queue: Queue, tmp_path: Path) -> None:
    job_id = queue.submit("family", pid_file=str(tmp_path / "pid"))
    queue.supervise()
    row = queue.until_working(job_id)
    grandchild = int((tmp_path / "pid").read_text())
    os.kill(row["pid"], signal.SIGKILL)
    assert queue.until_over(job_id)["state"] == "lost"
    until(lambda: _gone(grandchild))


def test_workers_outlive_their_supervisor_and_are_adopted(queue: Queue, tmp_path: Path) -> None:
    job_id = queue.submit("nap", steps=60, diary=str(tmp_path / "diary"))
    orphan = queue.submit("family", pid_file=str(tmp_path / "pid"))
    first = queue.supervise()
    worker = queue.until_working(job_id)["pid"]
    first.kill()
    first.wait()
    assert not jobs.is_supervised(queue.store)
    queue.supervise()
    row = queue.until_over(job_id)
    assert (row["state"], row["attempt"], row["pid"]) == ("succeeded", 1, worker)
    lines = (tmp_path / "diary").read_text().splitlines()
    assert lines == [f"{worker} {step}" for step in range(60)]

    # And an adopted worker that dies is found out without being anyone's child.
    row = queue.until_working(orphan)
    for process in queue.supervisors:
        process.kill()
        process.wait()
    os.kill(row["pid"], signal.SIGKILL)
    queue.supervise()
    assert queue.until_over(orphan)["state"] == "lost"
    until(lambda: _gone(int((tmp_path / "pid").read_text())))


def test_closing_the_terminal_does_not_stop_a_job(queue: Queue, tmp_path: Path) -> None:
    program = (
        "import sys, time; from core import jobs; from core.store import Store;"
        f"store = Store.open({str(queue.store.path)!r});"
        f"print(jobs.submit(store, 'nap', {{'steps': 60, 'diary': {str(tmp_path / 'diary')!r}}}), flush=True);"
        "jobs.ensure_supervisor(store); time.sleep(60)"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(Path(__file__).parents[3])
        os.execv(sys.executable, [sys.executable, "-c", program])
    until(lambda: (tmp_path / "diary").exists())
    os.close(terminal)  # the kernel sends SIGHUP to everything on this terminal
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    row = queue.until_over(1)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert len((tmp_path / "diary").read_text().splitlines()) == 60


def test_cancelling_asks_then_tells_then_kills(queue: Queue, tmp_path: Path) -> None:
    polite = queue.submit("family", pid_file=str(tmp_path / "pid"))
    stubborn = queue.submit("stubborn")
    waiting = queue.submit("nap")
    queue.supervise()
    assert jobs.cancel(queue.store, waiting) == "cancelled"
    queue.until_working(polite)
    assert jobs.cancel(queue.store, polite) == "cancelling"
    row = queue.until_over(polite)
    assert (row["state"], row["message"], row["signal"]) == ("cancelled", "cancelled", None)
    until(lambda: _gone(int((tmp_path / "pid").read_text())))

    queue.until_working(stubborn)
    asked_at = time.monotonic()
    jobs.cancel(queue.store, stubborn)
    row = queue.until_over(stubborn)
    assert (row["state"], row["signal"]) == ("cancelled", signal.SIGKILL)
    assert time.monotonic() - asked_at > 0.6, "it had its time to stop"


def test_asking_twice_kills_at_once(queue: Queue) -> None:
    job_id = queue.submit("stubborn")
    jobs.ensure_supervisor(queue.store)  # with the patience of everyday: 2 s, then 30 s
    queue.until_working(job_id)
    jobs.cancel(queue.store, job_id)
    jobs.cancel(queue.store, job_id)
    assert queue.until_over(job_id)["signal"] == signal.SIGKILL


def _claimed(queue: Queue, **fields: object) -> int:
    job_id = queue.submit("nap")
    assert table.claim(queue.store, "cpu", ["auto"])
    for key, value in fields.items():
        queue.store.execute(f"UPDATE jobs SET {key} = ? WHERE id = ?", (value, job_id))
    return job_id


def test_after_a_reboot_every_running_job_is_lost(queue: Queue) -> None:
    job_id = _claimed(queue, state="running", boot_id="another boot", pid=1, pgid=1, pid_start_ticks=1)
    jobs.reconcile(queue.store)
    row = queue.job(job_id)
    assert row["state"] == "lost" and "the machine was restarted" in row["message"]


def test_a_reused_pid_is_not_taken_for_the_worker(queue: Queue) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        job_id = _claimed(queue, state="running", pid=other.pid, pgid=other.pid, pid_start_ticks=1)
        jobs.reconcile(queue.store)
        assert queue.job(job_id)["state"] == "lost"
        assert other.poll() is None, "a stranger with the same number is left alone"
    finally:
        other.kill()
        other.wait()


def test_a_job_claimed_by_a_supervisor_that_died_waits_again(queue: Queue) -> None:
    job_id = _claimed(queue, started_at=now(-60))
    jobs.reconcile(queue.store)
    assert queue.job(job_id)["state"] == "queued"
    queue.supervise()
    assert queue.until_over(job_id)["attempt"] == 2


def test_another_hosts_jobs_are_not_judged(queue: Queue) -> None:
    job_id = _claimed(queue, state="running", host="elsewhere", boot_id="x", pid=1, pgid=1)
    jobs.reconcile(queue.store)
    assert queue.job(job_id)["state"] == "running"


def test_a_job_started_twice_runs_once(queue: Queue) -> None:
    job_id = _claimed(queue)
    commands = [
        supervisor.python_command(
            "worker", "--db", str(queue.store.path), "--job", str(job_id), "--attempt", number
        )
        for number in ("1", "1", "2")
    ]
    environment = {**supervisor.python_environment(), "LANCE_WORKBENCH_JOB": str(job_id)}
    for process in [subprocess.Popen(command, env=environment) for command in commands]:
        process.wait()
    assert queue.job(job_id)["state"] == "succeeded"
    running = [event for event in jobs.events(queue.store, job_id) if event["to_state"] == "running"]
    assert len(running) == 1


def test_a_full_disk_under_the_database_ends_in_a_failed_row(queue: Queue) -> None:
    with Store.open(queue.store.path) as store:
        # SQLite then says what it says on a full disk; the limit is the connection's, as the disk's is the machine's.
        store.value(f"PRAGMA max_page_count = {store.value('PRAGMA page_count') + 20}")
        with pytest.raises(Exception, match="no space left on the device"):
            for _ in range(100):
                store.add_media(os.urandom(8000), "image/png")
        assert store.integrity_errors() == []
