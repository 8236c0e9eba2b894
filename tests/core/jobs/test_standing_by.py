"""The process that gets ready for the next job while the one before runs: what it becomes, and what its end costs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from job_queue import Queue, until

from core import jobs
from core.jobs import processes
from core.jobs.executor import End, Row
from core.jobs.supervisor import Supervisor


class Chain:
    """A job that runs until it is let go, and one behind it whose process stands by already."""

    def __init__(self, queue: Queue, folder: Path) -> None:
        self._go, self._imports = folder / "go", folder / "imports"
        self.first = queue.submit("waits", file=str(self._go))
        self.second = jobs.submit(queue.store, "where", {}, depends_on=self.first)
        self.supervisor = queue.supervise()
        until(lambda: len(self.imported()) == 2)
        (self.ready,) = set(self.imported()) - {queue.job(self.first)["pid"]}

    def imported(self) -> list[int]:
        """The processes that have imported the handlers."""
        return [int(line) for line in self._imports.read_text().split()] if self._imports.exists() else []

    def let_go(self) -> None:
        self._go.touch()


@pytest.fixture
def chain(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setenv("SAMPLE_IMPORTS", str(tmp_path / "imports"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Chain(queue, tmp_path)


def _gone(pid: int) -> bool:
    return processes.start_ticks(pid) is None


def test_the_next_job_runs_in_the_process_that_stood_by(queue: Queue, chain: Chain, tmp_path: Path) -> None:
    assert queue.job(chain.second)["state"] == "queued", "one job at a time, whoever waits for it"
    chain.let_go()
    row = queue.until_over(chain.second)
    assert (row["state"], row["attempt"], row["pid"]) == ("succeeded", 1, chain.ready)
    assert row["result"] == {"cwd": str(tmp_path / "here"), "session": True, "stdin": "/dev/null"}
    assert queue.log(chain.second) == "here\nand here\n"
    assert queue.log(chain.first) == ""
    until(lambda: not jobs.is_supervised(queue.store))
    assert len(chain.imported()) == 2, "nobody stands by for a queue that is empty"


def test_a_process_that_dies_standing_by_costs_no_job(queue: Queue, chain: Chain) -> None:
    os.kill(chain.ready, signal.SIGKILL)
    chain.let_go()
    row = queue.until_over(chain.second)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert row["pid"] not in (None, chain.ready)


def test_nobody_stands_by_for_a_job_that_was_cancelled(queue: Queue, chain: Chain) -> None:
    jobs.cancel(queue.store, chain.second)
    until(lambda: _gone(chain.ready))
    chain.let_go()
    assert queue.until_over(chain.first)["state"] == "succeeded"


class Watcher:
    """An executor that starts nothing and keeps what it was asked to prepare."""

    def __init__(self) -> None:
        self.prepared: list[tuple[str, str | None]] = []

    def submit(self, row: Row) -> None: ...

    def prepare(self, slot: str, kind: str | None) -> None:
        self.prepared.append((slot, kind))

    def status(self, row: Row) -> End | None: ...

    def cancel(self, row: Row, *, force: bool) -> None: ...

    def logs(self, row: Row) -> Path:
        raise AssertionError("no job ends here")


@pytest.mark.parametrize(("running", "prepared"), [("quantize", ("cpu", "evaluate")), ("bench", None)])
def test_nothing_is_imported_beside_a_job_that_measures_time(
    queue: Queue, running: str, prepared: tuple[str, str] | None
) -> None:
    for kind in (running, "evaluate", "where"):
        queue.submit(kind, device="cpu")
    watcher = Watcher()
    Supervisor(queue.store, executor=watcher).step()
    assert queue.job(1)["state"] == "starting"
    assert [asked for asked in watcher.prepared if asked[1]] == ([prepared] if prepared else [])


def test_who_stands_by_goes_with_the_supervisor(queue: Queue, chain: Chain) -> None:
    chain.supervisor.kill()
    chain.supervisor.wait()
    until(lambda: _gone(chain.ready))
    chain.let_go()
    queue.supervise()
    assert queue.until_over(chain.second)["state"] == "succeeded"
