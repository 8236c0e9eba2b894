"""The jobs table: the only place that changes a job's state.

States: queued → starting → running → succeeded | failed | cancelled | lost, with ``cancelling`` between
running and its end. Every change is a compare-and-swap, so whoever comes second changes nothing; a trigger of
the schema appends it to ``job_events`` and closes the runs of a job that is over.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UsageError
from core.jobs import kinds, processes
from core.store import Store
from core.store.clock import now, parse, seconds_since

Row = dict[str, Any]

ACTIVE = ("starting", "running", "cancelling")
FINISHED = ("succeeded", "failed", "cancelled", "lost")
DEPENDENCY = "DependencyFailed"
"""``error_class`` of a job that was cancelled because one it needs did not succeed."""


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


def folder(store: Store, job_id: int) -> Path:
    """Where a job keeps its log and its lock."""
    return store.data_dir / "jobs" / str(job_id)


def log_path(store: Store, job_id: int) -> Path:
    """The file that holds everything a job's processes wrote to stdout and stderr."""
    return folder(store, job_id) / "log.txt"


def lock_path(store: Store, job_id: int) -> Path:
    """The file whose lock a job's worker holds for life."""
    return folder(store, job_id) / "lock"


def _decoded(row: Row) -> Row:
    row["spec"] = json.loads(row["spec"])
    row["result"] = None if row["result"] is None else json.loads(row["result"])
    row["depends_on"] = [int(part) for part in (row["depends_on"] or "").split(",") if part]
    return row


def job(store: Store, job_id: int) -> Row:
    """One job: the columns of ``jobs``, spec and result decoded, ``depends_on`` as a list of ids.

    Raises:
        UsageError: there is no such job.
    """
    rows = store.query("SELECT * FROM job_table WHERE id = ?", (job_id,))
    if not rows:
        raise UsageError(
            f"job {job_id}: not in {store.path}; `lance-workbench jobs list --all` shows what is"
        )
    return _decoded(rows[0])


def jobs(store: Store, *, states: Iterable[str] | None = None, limit: int | None = None) -> list[Row]:
    """Jobs, newest first; only those in ``states`` if given."""
    wanted = tuple(states) if states is not None else (*ACTIVE, "queued", *FINISHED)
    rows = store.query(
        f"SELECT * FROM job_table WHERE state IN ({_marks(wanted)}) ORDER BY id DESC LIMIT ?",
        (*wanted, -1 if limit is None else limit),
    )
    return [_decoded(row) for row in rows]


def unfinished(store: Store) -> int:
    """How many jobs are queued or active."""
    states = ("queued", *ACTIVE)
    return int(store.value(f"SELECT count(*) FROM jobs WHERE state IN ({_marks(states)})", states))


def events(store: Store, job_id: int) -> list[Row]:
    """Every change of a job's state: at, attempt, from_state, to_state, message; oldest first."""
    return store.query(
        "SELECT at, attempt, from_state, to_state, message FROM job_events WHERE job_id = ? ORDER BY id",
        (job_id,),
    )


def rate(row: Mapping[str, Any]) -> float | None:
    """Units of progress per second since the job started, or None before there is any."""
    done, started = row["progress_done"], row["started_at"]
    if not done or started is None:
        return None
    until = row["progress_at"] or row["finished_at"]
    elapsed = seconds_since(started) if until is None else (parse(until) - parse(started)).total_seconds()
    return done / elapsed if elapsed > 0 else None


def seconds_left(row: Mapping[str, Any]) -> float | None:
    """An estimate of the time a running job still needs, or None where there is nothing to go by."""
    speed = rate(row)
    if row["state"] != "running" or speed is None or not row["progress_total"]:
        return None
    left = (row["progress_total"] - row["progress_done"]) / speed - seconds_since(row["progress_at"])
    return max(0.0, left)


def submit(
    store: Store,
    kind: str,
    spec: Mapping[str, Any],
    depends_on: int | Iterable[int] | None = None,
    priority: int = 0,
) -> int:
    """Queue a job; its id. It starts once a supervisor runs and every job it depends on has succeeded.

    Relative paths in ``spec`` are meant from the present working directory, in which the worker will run.

    Raises:
        UsageError: an unknown kind, or a dependency that does not exist.
    """
    kinds.check(kind)
    text = json.dumps(dict(spec), ensure_ascii=False, sort_keys=True)
    needs = [depends_on] if isinstance(depends_on, int) else list(depends_on or ())
    for needed in needs:
        job(store, needed)
    with store.write(durable=True) as connection:
        cursor = connection.execute(
            "INSERT INTO jobs (kind, spec, spec_hash, priority, device, cwd, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                kind,
                text,
                hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest(),
                priority,
                str(spec.get("device") or "auto"),
                os.getcwd(),  # noqa: PTH109 - a string for the row
                now(),
            ),
        )
        job_id = int(cursor.lastrowid or 0)
        connection.executemany(
            "INSERT INTO job_dependencies (job_id, needs) VALUES (?, ?)",
            [(job_id, needed) for needed in set(needs)],
        )
        _cancel_dependents(store)
    return job_id


def _cancel_dependents(store: Store) -> None:
    """Cancel every queued job that needs one which ended without success, and those that need it in turn."""
    while store.returning(
        "UPDATE jobs SET state = 'cancelled', finished_at = ?, error_class = ?, message = ("
        "  SELECT 'needs job ' || n.id || ', which ' || "
        "    CASE n.state WHEN 'failed' THEN 'failed' ELSE 'was ' || n.state END"
        "  FROM job_dependencies d JOIN jobs n ON n.id = d.needs"
        "  WHERE d.job_id = jobs.id AND n.state IN ('failed', 'cancelled', 'lost') LIMIT 1) "
        "WHERE state = 'queued' AND EXISTS (SELECT 1 FROM job_dependencies d JOIN jobs n ON n.id = d.needs"
        "  WHERE d.job_id = jobs.id AND n.state IN ('failed', 'cancelled', 'lost')) RETURNING id",
        (now(), DEPENDENCY),
    ):
        continue


def transition(
    store: Store, job_id: int, to: str, *, since: Iterable[str], attempt: int | None = None, **fields: Any
) -> bool:
    """Move a job to state ``to`` if it is in one of the states ``since`` (and in this attempt), setting
    ``fields`` with it.

    Returns:
        Whether it was this call that moved it.
    """
    since = tuple(since)
    finished = to in FINISHED
    if finished:
        fields["finished_at"] = now()
    sets = ", ".join(["state = ?", *(f"{key} = ?" for key in fields)])
    with store.write(durable=finished):
        moved = store.execute(
            f"UPDATE jobs SET {sets} WHERE id = ? AND state IN ({_marks(since)}) AND (? IS NULL OR attempt = ?)",
            (to, *fields.values(), job_id, *since, attempt, attempt),
        )
        if moved and finished and to != "succeeded":
            _cancel_dependents(store)
    return moved == 1


def claim(store: Store, slot: str, devices: Iterable[str]) -> Row | None:
    """Take the next job that may run on ``slot`` and asks for one of ``devices``: state ``starting``, next
    attempt.

    One statement, so that of any number of callers exactly one gets a job; None when there is none or the
    slot is taken.
    """
    devices = tuple(devices)
    rows = store.returning(
        "UPDATE jobs SET state = 'starting', attempt = attempt + 1, slot = ?, host = ?, boot_id = ?, started_at = ? "
        "WHERE id = (SELECT j.id FROM jobs j WHERE j.state = 'queued' "
        f"AND j.device IN ({_marks(devices)}) "
        "AND NOT EXISTS (SELECT 1 FROM jobs a "
        "  WHERE a.slot = ? AND a.host = ? AND a.state IN ('starting', 'running', 'cancelling')) "
        "AND NOT EXISTS (SELECT 1 FROM job_dependencies d JOIN jobs n ON n.id = d.needs"
        "  WHERE d.job_id = j.id AND n.state <> 'succeeded') "
        "ORDER BY j.priority DESC, j.id LIMIT 1) RETURNING id",
        (slot, socket.gethostname(), processes.boot_id(), now(), *devices, slot, socket.gethostname()),
    )
    return job(store, rows[0]["id"]) if rows else None


def cancel(store: Store, job_id: int) -> str:
    """Ask a job to stop; the state it is in afterwards.

    A queued job is cancelled at once. A running one is asked, after some seconds told by SIGTERM and then
    killed. Asking a second time kills it without waiting.

    Raises:
        UsageError: it is over already, or there is no such job.
    """
    if transition(store, job_id, "cancelled", since=("queued",), message="cancelled before it started"):
        return "cancelled"
    if transition(store, job_id, "cancelling", since=("starting", "running"), cancel_requested_at=now()):
        return "cancelling"
    if store.execute("UPDATE jobs SET kill_requested = 1 WHERE id = ? AND state = 'cancelling'", (job_id,)):
        return "cancelling"
    raise UsageError(f"job {job_id}: already {job(store, job_id)['state']}, nothing to cancel")


def retry(store: Store, job_id: int) -> None:
    """Queue a job that failed, was cancelled or was lost once more, with the same spec; what it had finished
    is not redone where its handler can tell. Jobs that were cancelled only because they need it are queued
    again with it.

    Raises:
        UsageError: it has not ended, it succeeded, or a job it needs has not succeeded.
    """
    row = job(store, job_id)
    if row["state"] not in ("failed", "cancelled", "lost"):
        raise UsageError(f"job {job_id}: {row['state']}; only a failed, cancelled or lost job can be retried")
    for needed in row["depends_on"]:
        state = job(store, needed)["state"]
        if state in ("failed", "cancelled", "lost"):
            raise UsageError(f"job {job_id}: needs job {needed}, which is {state}; retry job {needed} first")
    with store.write(durable=True) as connection:
        waiting = [job_id]
        while waiting:
            again = waiting.pop()
            connection.execute(
                "UPDATE jobs SET state = 'queued', slot = NULL, pid = NULL, pid_start_ticks = NULL, pgid = NULL, "
                "heartbeat_at = NULL, cancel_requested_at = NULL, kill_requested = 0, progress_done = NULL, "
                "progress_total = NULL, progress_at = NULL, unit = NULL, message = NULL, result = NULL, "
                "exit_code = NULL, signal = NULL, error_class = NULL, started_at = NULL, finished_at = NULL "
                "WHERE id = ? AND state IN ('failed', 'cancelled', 'lost')",
                (again,),
            )
            waiting += [
                found["id"]
                for found in store.query(
                    "SELECT j.id FROM jobs j JOIN job_dependencies d ON d.job_id = j.id "
                    "WHERE d.needs = ? AND j.state = 'cancelled' AND j.error_class = ?",
                    (again, DEPENDENCY),
                )
            ]
        _cancel_dependents(store)
