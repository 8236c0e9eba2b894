"""Where jobs run. The supervisor knows five verbs; ``LocalExecutor`` does them with processes of this
machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from core.jobs import processes, table
from core.jobs.slots import by_name
from core.store import Store
from core.store.clock import seconds_since

Row = dict[str, Any]

START_GRACE_S = 15.0
"""How long a claimed job may take until its worker holds the lock, if nobody can say that the worker is
dead."""


class End(NamedTuple):
    """How a worker ended.

    Attributes:
        exit_code: None where it is unknown or a signal ended it.
        signal: the signal that ended it, or None.
        started: whether it came as far as running the job.
    """

    exit_code: int | None
    signal: int | None
    started: bool


class Executor(Protocol):
    """A place that runs claimed jobs. Rows are those of ``table.job``."""

    def submit(self, row: Row) -> None:
        """Start the worker of a job that has just been claimed."""

    def prepare(self, slot: str, kind: str | None) -> None:
        """Make the start of the next job on a slot, probably of this kind, short; None: none is to be expected."""

    def status(self, row: Row) -> End | None:
        """How the job's worker ended, or None while it lives or may yet start."""

    def cancel(self, row: Row, *, force: bool) -> None:
        """Tell the job's processes to stop; with ``force``, stop them."""

    def logs(self, row: Row) -> Path:
        """The file that the job's output is in."""


def python_command(*arguments: str) -> list[str]:
    """A fresh interpreter running ``core.jobs``, without the working directory on its path."""
    return [sys.executable, "-P", "-m", "core.jobs", *arguments]


def python_environment() -> dict[str, str]:
    """This process's environment, in which ``core`` can be imported from where this process has it."""
    # OpenMP's idle threads sleep instead of spinning: where other work shares the cores, spinning made the small
    # products of decoding 8 times slower (2 threads on 2 busy cores), and on idle cores it gains nothing.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _tell(ready: subprocess.Popen[bytes], order: dict[str, str]) -> bool:
    """Give a waiting process its job; whether it was there to be told."""
    if ready.poll() is not None or ready.stdin is None:
        return False
    try:
        with ready.stdin as stream:
            stream.write(json.dumps(order).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def _dismiss(ready: subprocess.Popen[bytes]) -> None:
    """Stop a process that has waited for nothing: it has no job, so nothing is lost with it."""
    ready.kill()
    if ready.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            ready.stdin.close()
    ready.wait()


class LocalExecutor:
    """One process per job, each the leader of its own session, so that no terminal and no supervisor takes it
    along.

    Importing torch and transformers takes longer than many a small job, on one core: the process of the next job
    does it while the job before still runs, and then waits on its stdin to be told which job it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._ready: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, row: Row) -> None:
        """Start a worker for the claimed job, in the directory it was submitted from."""
        log = self.logs(row)
        log.parent.mkdir(parents=True, exist_ok=True)
        directory = row["cwd"] if row["cwd"] and Path(row["cwd"]).is_dir() else self._store.path.parent
        job, attempt = str(row["id"]), str(row["attempt"])
        with log.open("ab") as stream:
            order = {"job": job, "attempt": attempt, "log": str(log), "cwd": str(directory)}
            ready = self._ready.pop(row["slot"], None)
            if ready is not None and _tell(ready, order):
                self._children[row["id"]] = ready
                return
            self._children[row["id"]] = subprocess.Popen(
                python_command("worker", "--db", str(self._store.path), "--job", job, "--attempt", attempt),
                cwd=directory,
                env={**self._environment(row["slot"]), "LANCE_WORKBENCH_JOB": job},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def prepare(self, slot: str, kind: str | None) -> None:
        """Have a process that imports what a job of ``kind`` needs and waits for one; with None, have none."""
        if kind is None:
            ready = self._ready.pop(slot, None)
            if ready is not None:
                _dismiss(ready)
        elif slot not in self._ready:
            # One that dies is not replaced until a job has asked for it: a second would fare no better.
            self._ready[slot] = subprocess.Popen(
                python_command("stand-by", "--db", str(self._store.path), "--kind", kind),
                cwd=self._store.path.parent,
                env=self._environment(slot),
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    @staticmethod
    def _environment(slot: str) -> dict[str, str]:
        return {**python_environment(), **by_name(slot).environment()}

    def status(self, row: Row) -> End | None:
        """How the worker ended: by its exit status if it is our child, else by what the kernel still says of
        it."""
        child = self._children.get(row["id"])
        if child is not None:
            code = child.poll()
            if code is None:
                return None
            del self._children[row["id"]]
            self._sweep(row, child.pid)
            return End(code if code >= 0 else None, -code if code < 0 else None, row["pid"] is not None)
        if self._lives(row):
            return None
        self._sweep(row, row["pid"])
        return End(None, None, row["pid"] is not None)

    def cancel(self, row: Row, *, force: bool) -> None:
        """SIGTERM, or SIGKILL with ``force``, to everything in the worker's process group."""
        child = self._children.get(row["id"])
        known = row if child is None else self._identity(row, child.pid)
        processes.signal_group(known, signal.SIGKILL if force else signal.SIGTERM)

    def logs(self, row: Row) -> Path:
        """``jobs/<id>/log.txt`` in the store's data folder."""
        return table.log_path(self._store, row["id"])

    def _lives(self, row: Row) -> bool:
        if row["boot_id"] != processes.boot_id():
            return False
        locked = processes.is_locked(table.lock_path(self._store, row["id"]))
        if row["pid"] is None:
            return locked or seconds_since(row["started_at"]) < START_GRACE_S
        # A fork of the worker may have kept its lock, and a pid may have been reused: both must speak for it.
        return locked and processes.is_same(row["pid"], row["pid_start_ticks"])

    @staticmethod
    def _identity(row: Row, pid: int) -> Row:
        return {**row, "pid": pid, "pgid": pid, "boot_id": processes.boot_id()}

    def _sweep(self, row: Row, pid: int | None) -> None:
        """Kill what a dead worker left running in its group."""
        if pid is not None and row["boot_id"] == processes.boot_id():
            processes.signal_group(self._identity(row, pid), signal.SIGKILL)
