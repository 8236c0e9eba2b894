"""Starting a job from a verb, and waiting for it with its progress on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

from core import jobs
from core.errors import Cancelled, RetryLater, UsageError, WorkbenchError
from core.store import Store
from core.store.columns import duration
from workbench.cli.session import Session, print_fields, print_json

_Command = TypeVar("_Command", bound=Callable[..., Any])
Row = dict[str, Any]

PLAIN_PERIOD_S = 5.0


def detach_option(command: _Command) -> _Command:
    """Add ``--detach``, passed to the function as ``detach``."""
    help_text = "Print the job's number and return; it goes on in the background."
    return click.option("--detach", is_flag=True, help=help_text)(command)


def progress_text(row: Mapping[str, Any]) -> str:
    """A job's progress in words: ``running  12/200 samples  6 %  1 m 02 s left  message``."""
    parts = [row["state"]]
    done, total = row["progress_done"], row["progress_total"]
    if done is not None and total:
        parts += [f"{done:g}/{total:g} {row['unit'] or ''}".rstrip(), f"{100 * done / total:.0f} %"]
    left = jobs.seconds_left(row)
    if left is not None and left >= 1:
        parts.append(f"{duration(left)} left")
    if row["message"]:
        parts.append(str(row["message"]))
    return "  ".join(parts)


class Narrator:
    """Tells a job's progress on stderr: one line rewritten in place on a terminal, a line now and then
    elsewhere."""

    def __init__(self, job_id: int, kind: str) -> None:
        self._head = f"job {job_id} {kind}: "
        self._live = sys.stderr.isatty()
        self._state = ""
        self._told_at = 0.0
        self._open = False

    def __call__(self, row: Row) -> None:
        text = " ".join((self._head + progress_text(row)).split("\n"))
        if self._live:
            columns = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{text[: columns - 1]}")
            sys.stderr.flush()
            self._open = True
        elif row["state"] != self._state or time.monotonic() - self._told_at >= PLAIN_PERIOD_S:
            click.echo(text, err=True)
            self._told_at = time.monotonic()
        self._state = row["state"]

    def close(self) -> None:
        """Leave the live line, so that what follows starts on a new one."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False


def watch(store: Store, job_id: int, *, cancel_on_interrupt: bool) -> Row:
    """Wait until a job is over, telling its progress; its row.

    Ctrl-C stops watching; with ``cancel_on_interrupt`` it asks the job to stop first, and once more kills it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    narrator = Narrator(job_id, jobs.job(store, job_id)["kind"])
    try:
        return jobs.wait(store, job_id, narrator)
    except KeyboardInterrupt:
        if not cancel_on_interrupt:
            raise
        _cancel_and_wait(store, job_id, narrator)
        raise
    finally:
        narrator.close()


def _cancel_and_wait(store: Store, job_id: int, narrator: Narrator) -> None:
    while True:
        try:
            jobs.cancel(store, job_id)
        except UsageError:
            return  # it ended in the meantime
        try:
            jobs.wait(store, job_id, narrator)
            return
        except KeyboardInterrupt:
            continue  # asking again kills it


def outcome(row: Mapping[str, Any]) -> None:
    """Return for a job that succeeded.

    Raises:
        WorkbenchError: it did not; of the kind whose exit code is that of the job's own error.
    """
    if row["state"] == "succeeded":
        return
    log = f"`lance-workbench jobs log {row['id']}`"
    if row["state"] == "cancelled":
        raise Cancelled(f"job {row['id']} was cancelled; see {log}")
    text = f"job {row['id']} {row['state']}: {row['message'] or 'no message'}; see {log}"
    kinds: dict[int, type[WorkbenchError]] = {2: UsageError, 3: RetryLater}
    raise kinds.get(row["exit_code"], WorkbenchError)(text)


def report(row: Mapping[str, Any], as_json: bool) -> None:
    """Print a finished job's result on stdout."""
    if as_json:
        print_json({"job": row["id"], "kind": row["kind"], "state": row["state"], "result": row["result"]})
    else:
        print_fields(row["result"] or {})


def run_job(
    ctx: click.Context,
    kind: str,
    spec: Mapping[str, Any],
    detach: bool,
    as_json: bool,
    *,
    depends_on: int | Iterable[int] | None = None,
    show: Callable[[Row], None] | None = None,
) -> Row | None:
    """Queue a job and wait for it, progress on stderr and its result on stdout; its row, or None when
    detached.

    Args:
        ctx: the verb's context; its ``obj`` is the ``Session``.
        kind: the kind of job.
        spec: its spec.
        detach: print the job's number and return once a supervisor runs.
        as_json: print JSON, and nothing else, on stdout.
        depends_on: jobs that must succeed first.
        show: prints the result in place of ``report``, when not ``as_json``.

    Raises:
        WorkbenchError: the job failed or was lost; with the exit code of its own error.
        Cancelled: it was cancelled.
        KeyboardInterrupt: Ctrl-C; the job has been asked to stop.
    """
    session: Session = ctx.obj
    store = session.open(create=True)
    job_id = jobs.submit(store, kind, spec, depends_on=depends_on)
    jobs.ensure_supervisor(store)
    if store.warning:
        click.echo(f"warning: {store.warning}", err=True)
    return follow(store, job_id, detach=detach, as_json=as_json, show=show)


def follow(
    store: Store, job_id: int, *, detach: bool, as_json: bool, show: Callable[[Row], None] | None = None
) -> Row | None:
    """Wait for a queued job as ``run_job`` does."""
    if detach:
        if as_json:
            print_json({"job": job_id, "state": jobs.job(store, job_id)["state"]})
        else:
            click.echo(str(job_id))
            click.echo(f"job {job_id} goes on; `lance-workbench jobs wait {job_id}` waits for it", err=True)
        return None
    row = watch(store, job_id, cancel_on_interrupt=True)
    outcome(row)
    if show is not None and not as_json:
        show(row)
    else:
        report(row, as_json)
    return row
