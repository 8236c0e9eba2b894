"""One job in a process of its own: takes the job's lock for life, runs the handler, and leaves a finished row
whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import Cancelled, WorkbenchError
from core.jobs import kinds, processes, table
from core.jobs.context import JobContext
from core.jobs.logs import one_line
from core.jobs.slots import by_name
from core.store import Store
from core.store.clock import now

_LIVE = ("running", "cancelling")


def run(db: Path, job_id: int, attempt: int) -> int:
    """Run one attempt of a claimed job; the process's exit code."""
    with Store.open(db, create=False) as store:
        lock = processes.take_lock(table.lock_path(store, job_id), wait_s=5.0)
        if lock is None:
            print(f"job {job_id}: another worker holds its lock", file=sys.stderr)
            return 1
        row = table.job(store, job_id)
        pid = os.getpid()
        started = table.transition(
            store,
            job_id,
            "running",
            since=("starting",),
            attempt=attempt,
            pid=pid,
            pid_start_ticks=processes.start_ticks(pid),
            pgid=os.getpgid(0),
            heartbeat_at=now(),
        )
        if not started:
            # Cancelled before we came, or given to another worker because we were late.
            table.transition(
                store,
                job_id,
                "cancelled",
                since=("cancelling",),
                attempt=attempt,
                message="cancelled before it started",
            )
            return 0
        context = JobContext(store, job_id, attempt)
        context.start_heartbeat()
        try:
            state, fields = _outcome(row, context)
        finally:
            # From here on nothing may interrupt the writing of the outcome.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            context.stop()
        return _record(store, context, attempt, state, fields)


def stand_by(db: Path, kind: str) -> int:
    """Import what jobs of ``kind`` need, then run the one that a line on stdin names; the process's exit code.

    The line is JSON: ``job`` and ``attempt``, the ``log`` that output goes to, and ``cwd``, where the job runs. It may
    be of any kind. When stdin ends without it, as it does when the supervisor is gone, there is nothing to run.
    """
    with contextlib.suppress(Exception):  # the job will meet the same error, and report it
        kinds.resolve(kind)
    line = sys.stdin.readline()
    if not line:
        return 0
    order = json.loads(line)
    _redirect(Path(order["log"]))
    os.chdir(order["cwd"])
    os.environ["LANCE_WORKBENCH_JOB"] = order["job"]
    # The manifests of its runs name the command that runs this job again.
    sys.argv[1:] = ["worker", "--db", str(db), "--job", order["job"], "--attempt", order["attempt"]]
    return run(db, int(order["job"]), int(order["attempt"]))


def _redirect(log: Path) -> None:
    """From here on read nothing, and write everything to ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)


def _say(text: str) -> None:
    """Write to the log, which may be on the full disk that is being reported."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _outcome(row: Mapping[str, Any], context: JobContext) -> tuple[str, dict[str, Any]]:
    """Run the handler; the job's final state and the columns that go with it."""

    def on_term(_number: int, _frame: FrameType | None) -> None:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # once is enough; the next step of the ladder is SIGKILL
        context.request_cancel()
        raise Cancelled(f"job {context.job_id}: cancelled")

    try:
        signal.signal(signal.SIGTERM, on_term)
        spec = dict(row["spec"])
        slot_lock = _wait_for_slot(row, context)
        try:
            if slot_lock is not None and str(spec.get("device", "")).startswith("cuda"):
                spec["device"] = "cuda"  # the only one this process sees
            result = kinds.resolve(row["kind"])(spec, context)
            text = json.dumps(dict(result or {}), ensure_ascii=False)
        finally:
            if slot_lock is not None:
                os.close(slot_lock)
        return "succeeded", {"result": text, "exit_code": 0}
    except Cancelled:
        return "cancelled", {
            "message": "cancelled",
            "exit_code": Cancelled.exit_code,
            "error_class": "Cancelled",
        }
    except WorkbenchError as error:
        _say(f"error: {error}")
        return "failed", {
            "message": one_line(error),
            "error_class": type(error).__name__,
            "exit_code": error.exit_code,
        }
    except BaseException as error:
        _say(traceback.format_exc())
        return "failed", {
            "message": one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__),
            "error_class": type(error).__name__,
            "exit_code": 1,
        }


def _wait_for_slot(row: Mapping[str, Any], context: JobContext) -> int | None:
    """Take the GPU's lock, which a job of another database may hold; None for the processor, which has
    none."""
    path = by_name(row["slot"]).lock_path()
    if path is None:
        return None
    while (descriptor := processes.take_lock(path, wait_s=1.0)) is None:
        context.progress(0, None, message=f"waiting for {row['slot']}, which another job of yours uses")
    return descriptor


def _record(store: Store, context: JobContext, attempt: int, state: str, fields: dict[str, Any]) -> int:
    """Write the outcome, trying for some seconds if the disk is full or the database locked; the process's
    exit code."""
    for last in (False, False, False, True):
        try:
            with contextlib.suppress(WorkbenchError):
                context.flush()
            table.transition(store, context.job_id, state, since=_LIVE, attempt=attempt, **fields)
            return int(fields["exit_code"])
        except WorkbenchError as error:
            if last:
                # The log's last line becomes the row's message, once the supervisor can write it.
                _say(f"error: {fields.get('message') or one_line(error)}")
            else:
                time.sleep(1.0)
    return 1
