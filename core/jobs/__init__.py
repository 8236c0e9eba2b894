"""Background jobs that outlive the terminal: a queue table, one supervisor per database, one process per job.

No service is installed: whoever queues a job starts the supervisor if none runs. The app and the command line
are clients; they hold no lock, and any number of them may look on. Imports no torch; a job's handler is
imported in its worker alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from core.jobs.supervisor import ensure_supervisor, is_supervised, reconcile
from core.jobs.table import (
    ACTIVE,
    FINISHED,
    cancel,
    events,
    job,
    jobs,
    log_path,
    rate,
    retry,
    seconds_left,
    submit,
    unfinished,
)
from core.store import Store

__all__ = [
    "ACTIVE",
    "FINISHED",
    "cancel",
    "ensure_supervisor",
    "events",
    "is_supervised",
    "job",
    "jobs",
    "log_path",
    "rate",
    "reconcile",
    "retry",
    "seconds_left",
    "submit",
    "unfinished",
    "wait",
]


def wait(
    store: Store,
    job_id: int,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    poll_s: float = 0.1,
) -> dict[str, Any]:
    """Wait until a job is over, keeping a supervisor alive for it; its row.

    Args:
        store: the database.
        job_id: the job.
        on_progress: called with the job's row whenever the database has changed.
        poll_s: how often to look.

    Raises:
        UsageError: there is no such job.
        WorkbenchError: no supervisor can be started.
    """
    seen: tuple[int, int] | None = None
    checked = 0.0
    while True:
        version = store.data_version()
        if version != seen:
            seen = version
            row = job(store, job_id)
            if on_progress is not None:
                on_progress(row)
            if row["state"] in FINISHED:
                return row
        if time.monotonic() - checked > 1.0:
            ensure_supervisor(store)
            checked = time.monotonic()
        time.sleep(poll_s)
