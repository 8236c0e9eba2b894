"""``jobs list|show|log|cancel|retry|wait``: background jobs without the app."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from core import jobs
from core.errors import RetryLater, StoreError
from core.jobs.kinds import what
from core.store import Store
from workbench.cli.launch import detach_option, follow, outcome, progress_text, report, watch
from workbench.cli.session import Session, json_option, print_fields, print_json, print_table

_JOB = click.argument("job_id", metavar="JOB", type=int)


@click.group()
def command() -> None:
    """List, follow, cancel and retry jobs."""


def _refresh(store: Store) -> None:
    """Close the jobs whose workers are gone, and see to it that waiting ones have a supervisor, if we may
    write."""
    if jobs.unfinished(store) == 0:
        return
    try:
        jobs.reconcile(store)
        jobs.ensure_supervisor(store)
    except (StoreError, RetryLater) as error:
        click.echo(f"warning: {error}", err=True)


@command.command("list")
@click.option("--all", "every", is_flag=True, help="Every job, not the newest 20.")
@click.option("--active", is_flag=True, help="Only jobs that wait or run.")
@json_option
@click.pass_obj
def list_jobs(session: Session, every: bool, active: bool, as_json: bool) -> None:
    """List jobs, newest first."""
    store = session.open()
    _refresh(store)
    states = ("queued", *jobs.ACTIVE) if active else None
    rows = jobs.jobs(store, states=states, limit=None if every or active else 20)
    if as_json:
        print_json(rows)
        return
    print_table(
        ["job", "kind", "what", "device", "state", "progress"],
        [
            [
                str(row["id"]),
                row["kind"],
                what(row["kind"], row["spec"]),
                row["slot"] or row["device"],
                row["state"],
                _waiting_for(row) or progress_text(row).removeprefix(row["state"]).strip(),
            ]
            for row in rows
        ],
        ["job"],
    )


def _waiting_for(row: dict[str, Any]) -> str:
    if row["state"] != "queued" or not row["depends_on"]:
        return ""
    return f"after {', '.join(str(needed) for needed in row['depends_on'])}"


@command.command("show")
@_JOB
@json_option
@click.pass_obj
def show_job(session: Session, job_id: int, as_json: bool) -> None:
    """Show one job and everything that happened to it."""
    store = session.open()
    _refresh(store)
    row = jobs.job(store, job_id)
    happened = jobs.events(store, job_id)
    log = str(jobs.log_path(store, job_id))
    if as_json:
        print_json({**row, "log": log, "events": happened})
        return
    print_fields({**row, "log": log})
    for event in happened:
        change = f"{event['from_state'] or 'submitted'} → {event['to_state']}"
        click.echo(f"{event['at']}  {change:24}  {event['message'] or ''}".rstrip())


def _lines(store: Store, job_id: int, log: Path, following: bool) -> Iterator[str]:
    """The log's lines; with ``following``, as they come until the job is over."""
    rest = b""
    offset = 0
    while True:
        over = not following or jobs.job(store, job_id)["state"] in jobs.FINISHED
        if log.exists():
            with log.open("rb") as stream:
                stream.seek(offset)
                rest += stream.read()
                offset = stream.tell()
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rpartition("\r")[2]
        if over:
            if rest:
                yield rest.decode(errors="replace").rpartition("\r")[2]
            return
        time.sleep(0.25)


@command.command("log")
@_JOB
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@json_option
@click.pass_obj
def show_log(session: Session, job_id: int, follow: bool, as_json: bool) -> None:
    """Print everything a job wrote. --json prints one record a line."""
    store = session.open()
    jobs.job(store, job_id)
    for line in _lines(store, job_id, jobs.log_path(store, job_id), follow):
        click.echo(json.dumps({"job": job_id, "line": line}, ensure_ascii=False) if as_json else line)


@command.command("cancel")
@_JOB
@click.option("--kill", is_flag=True, help="Do not wait for it to stop by itself.")
@json_option
@click.pass_obj
def cancel_job(session: Session, job_id: int, kill: bool, as_json: bool) -> None:
    """Ask a job to stop. It is told by signal after 2 s and killed 30 s later; asking again kills it at
    once."""
    store = session.open()
    state = jobs.cancel(store, job_id)
    if kill and state == "cancelling":
        state = jobs.cancel(store, job_id)
    jobs.ensure_supervisor(store)
    if as_json:
        print_json({"job": job_id, "state": state})
    else:
        click.echo(f"job {job_id}: {state}")


@command.command("retry")
@_JOB
@detach_option
@json_option
@click.pass_obj
def retry_job(session: Session, job_id: int, detach: bool, as_json: bool) -> None:
    """Run a failed, cancelled or lost job again, and what was cancelled because it needed it."""
    store = session.open()
    jobs.retry(store, job_id)
    jobs.ensure_supervisor(store)
    follow(store, job_id, detach=detach, as_json=as_json)


@command.command("wait")
@_JOB
@json_option
@click.pass_obj
def wait_for_job(session: Session, job_id: int, as_json: bool) -> None:
    """Wait until a job is over and print its result. Ctrl-C stops waiting; the job goes on."""
    store = session.open()
    row = watch(store, job_id, cancel_on_interrupt=False)
    outcome(row)
    report(row, as_json)
