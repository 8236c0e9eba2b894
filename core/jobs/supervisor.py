"""The supervisor: one process per database that starts queued jobs, carries out cancellations, and says which
jobs are lost.

It holds ``<db>.supervisor.lock``, is started by whoever queues a job, and leaves when there is nothing to do.
If it is killed the workers go on, and the next supervisor adopts them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from core.errors import WorkbenchError
from core.jobs import kinds, processes, table
from core.jobs.executor import End, Executor, LocalExecutor, Row, python_command, python_environment
from core.jobs.logs import last_line
from core.jobs.slots import Slot, slots
from core.store import Store
from core.store.clock import seconds_since

POLL_S = 0.15
IDLE_S = 5.0
TERM_AFTER_S = 2.0
KILL_AFTER_S = 30.0

_started: list[subprocess.Popen[bytes]] = []  # kept so that they are reaped, not warned about, when collected


def lock_path(store: Store) -> Path:
    """The file whose lock elects the supervisor."""
    return store.path.with_name(store.path.name + ".supervisor.lock")


def _close(store: Store, row: Row, end: End, log: Path) -> None:
    """Give a job whose worker is gone the state that follows from how it went."""
    facts = {"exit_code": end.exit_code, "signal": end.signal}
    moved = table.transition
    attempt = row["attempt"]
    if moved(
        store,
        row["id"],
        "cancelled",
        since=("cancelling",),
        attempt=attempt,
        message="stopped when asked to",
        **facts,
    ):
        return
    if end.exit_code is None and end.signal is None and not end.started:
        # Claimed by a supervisor that died before it could start a worker: nothing has run, so it waits
        # again.
        moved(store, row["id"], "queued", since=("starting",), attempt=attempt, slot=None, started_at=None)
        return
    if end.exit_code is not None:
        message = last_line(log) or f"the worker ended with exit code {end.exit_code}"
        moved(
            store, row["id"], "failed", since=("starting", "running"), attempt=attempt,
            message=message.removeprefix("error: "), error_class="WorkerEnded", **facts,
        )  # fmt: skip
        return
    how = f"killed by signal {end.signal}" if end.signal else "gone"
    reboot = row["boot_id"] != processes.boot_id()
    message = (
        f"the worker was {how}" + (", the machine was restarted" if reboot else "") + "; retry runs it again"
    )
    moved(
        store, row["id"], "lost", since=("starting", "running"), attempt=attempt,
        message=message, error_class="Lost", **facts,
    )  # fmt: skip


def reconcile(store: Store, executor: Executor | None = None, watched: set[int] | None = None) -> None:
    """Close the jobs of this host whose workers are gone. Any client may call it; the supervisor does all the
    time.

    ``watched`` is what a caller who stays keeps between calls: jobs whose workers were alive the last time. A
    worker that wrote its own end has still to be reaped, and what it left running to be stopped.
    """
    executor = executor or LocalExecutor(store)
    watched = set() if watched is None else watched
    rows = {row["id"]: row for row in table.jobs(store, states=table.ACTIVE)}
    for job_id in watched - rows.keys():
        rows[job_id] = table.job(store, job_id)
    for job_id, row in rows.items():
        watched.discard(job_id)
        if row["host"] != socket.gethostname() or row["state"] == "queued":
            continue  # another machine's pids say nothing here, and a queued job has no worker
        end = executor.status(row)
        if end is None:
            watched.add(job_id)
        else:
            _close(store, row, end, executor.logs(row))


class Supervisor:
    """The loop of the elected process.

    Args:
        store: the database.
        idle_s: how long to stay with nothing to do.
        term_after_s: how long a job has to stop by itself once it is asked to.
        kill_after_s: how long after SIGTERM it is killed.
    """

    def __init__(
        self,
        store: Store,
        *,
        idle_s: float = IDLE_S,
        term_after_s: float = TERM_AFTER_S,
        kill_after_s: float = KILL_AFTER_S,
        executor: Executor | None = None,
    ) -> None:
        self._store = store
        self._idle_s = idle_s
        self._term_after_s = term_after_s
        self._kill_after_s = kill_after_s
        self._executor: Executor = executor or LocalExecutor(store)
        self._slots: list[Slot] = slots()
        self._told: set[tuple[int, int]] = set()
        self._watched: set[int] = set()

    def run(self) -> None:
        """Supervise until there has been nothing to do for ``idle_s``; returns at once if another supervisor
        is there."""
        # Who only looks whether the lock is held has it for an instant, so one refusal does not mean a supervisor.
        while (lock := processes.take_lock(lock_path(self._store), wait_s=0.5)) is not None:
            try:
                self._loop()
                self._store.flush_log()
            finally:
                os.close(lock)
            # A job queued between our last look and the release found a supervisor and started none.
            if not self._store.path.exists() or not table.unfinished(self._store):
                return

    def _loop(self) -> None:
        busy_at = time.monotonic()
        while self._store.path.exists():
            try:
                if self.step():
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at > self._idle_s:
                    return
            except WorkbenchError as error:
                # A full disk or a long lock passes; leaving would leave the jobs without anyone.
                print(f"error: {error}", file=sys.stderr, flush=True)
                time.sleep(1.0)
            time.sleep(POLL_S)

    def step(self) -> bool:
        """Look once at everything; whether there is anything left to do."""
        reconcile(self._store, self._executor, self._watched)
        self._stop_cancelled()
        self._start_queued()
        self._prepare_next()
        return table.unfinished(self._store) > 0 or bool(self._watched)

    def _stop_cancelled(self) -> None:
        for row in table.jobs(self._store, states=("cancelling",)):
            if row["host"] != socket.gethostname():
                continue
            waited = seconds_since(row["cancel_requested_at"])
            key = (row["id"], row["attempt"])
            if row["kill_requested"] or waited > self._term_after_s + self._kill_after_s:
                self._executor.cancel(row, force=True)
            elif waited > self._term_after_s and key not in self._told:
                self._told.add(key)
                self._executor.cancel(row, force=False)

    def _start_queued(self) -> None:
        wanted = [
            row["device"]
            for row in self._store.query("SELECT DISTINCT device FROM jobs WHERE state = 'queued'")
        ]
        for device in wanted:
            if not any(slot.accepts(device) for slot in self._slots):
                self._refuse(device)
        for slot in self._slots:
            path = slot.lock_path()
            devices = [device for device in wanted if slot.accepts(device)]
            if not devices or (path is not None and processes.is_locked(path)):
                continue
            row = table.claim(self._store, slot.name, devices)
            if row is not None:
                self._executor.submit(row)

    def _prepare_next(self) -> None:
        """Where a job runs and another is queued behind it, have the next worker get ready meanwhile."""
        busy = {
            row["slot"]
            for row in table.jobs(self._store, states=table.ACTIVE)
            if row["host"] == socket.gethostname() and row["kind"] not in kinds.MEASURING
        }
        queued = self._store.query(
            "SELECT kind, device FROM jobs WHERE state = 'queued' ORDER BY priority DESC, id"
        )
        for slot in self._slots:
            kind = next((row["kind"] for row in queued if slot.accepts(row["device"])), None)
            if kind is None or slot.name in busy:
                self._executor.prepare(slot.name, kind)

    def _refuse(self, device: str) -> None:
        have = ", ".join(slot.name if slot.gpu is None else f"cuda:{slot.gpu}" for slot in self._slots)
        for row in table.jobs(self._store, states=("queued",)):
            if row["device"] == device:
                message = f"device {device}: not on this machine, which has {have}"
                table.transition(
                    self._store,
                    row["id"],
                    "failed",
                    since=("queued",),
                    message=message,
                    error_class="UsageError",
                )


def is_supervised(store: Store) -> bool:
    """Whether a supervisor is running for this database."""
    return processes.is_locked(lock_path(store))


def ensure_supervisor(store: Store) -> None:
    """Start a supervisor in a session of its own if there is work and none runs; returns once one does.

    Raises:
        WorkbenchError: it did not start; the message has the last line of its log.
    """
    if is_supervised(store) or not table.unfinished(store):
        return
    store.data_dir.mkdir(parents=True, exist_ok=True)
    log = store.data_dir / "supervisor.log"
    with log.open("ab") as stream:
        child = subprocess.Popen(
            python_command("supervise", "--db", str(store.path)),
            cwd=store.path.parent,
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started[:] = [other for other in _started if other.poll() is None] + [child]
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        if is_supervised(store) or child.poll() == 0:  # 0: it lost the election, or is done already
            return
        if child.returncode is not None:
            break
        time.sleep(0.02)
    raise WorkbenchError(f"the job supervisor did not start: {last_line(log) or 'no output'} (see {log})")
