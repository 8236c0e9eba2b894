"""A queue with quick supervisors, and waiting for what processes do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import jobs
from core.jobs import processes, supervisor, table
from core.jobs.executor import python_command, python_environment
from core.store import Store

PATIENCE_S = 30.0


def until(condition: Callable[[], Any]) -> Any:
    """Wait until ``condition`` is true; what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return value


class Queue:
    """A store, and a supervisor with short patience when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def supervise(self) -> subprocess.Popen[bytes]:
        options = ("--idle", "0.3", "--term-after", "0.3", "--kill-after", "0.4")
        process = subprocess.Popen(
            python_command("supervise", "--db", str(self.store.path), *options),
            env=python_environment(),
            start_new_session=True,
        )
        self.supervisors.append(process)
        until(lambda: jobs.is_supervised(self.store) or process.poll() is not None)
        return process

    def submit(self, kind: str, **spec: Any) -> int:
        return jobs.submit(self.store, kind, spec)

    def job(self, job_id: int) -> dict[str, Any]:
        return jobs.job(self.store, job_id)

    def until_state(self, job_id: int, *states: str) -> dict[str, Any]:
        return until(lambda: row if (row := self.job(job_id))["state"] in states else None)

    def until_over(self, job_id: int) -> dict[str, Any]:
        return self.until_state(job_id, *jobs.FINISHED)

    def until_working(self, job_id: int) -> dict[str, Any]:
        """Wait until the handler itself has reported progress."""
        return until(lambda: row if (row := self.job(job_id))["progress_done"] is not None else None)

    def log(self, job_id: int) -> str:
        return jobs.log_path(self.store, job_id).read_text()

    def close(self) -> None:
        for process in self.supervisors:
            process.kill()
            process.wait()
        active = table.jobs(self.store, states=table.ACTIVE)
        self.store.close()
        for suffix in ("", "-wal", "-shm"):
            self.store.path.with_name(self.store.path.name + suffix).unlink(
                missing_ok=True
            )  # ends other supervisors
        for row in active:
            processes.signal_group(row, signal.SIGKILL)
        for child in supervisor._started:
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
            child.wait()
