"""Kinds of job for the tests, which workers import because LANCE_WORKBENCH_HANDLERS names this module."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.jobs.context import JobContext
from core.jobs.kinds import register

for _kind in ("nap", "fails", "crashes", "full", "exits", "stubborn", "family", "records", "where", "waits"):
    register(_kind, f"sample_handlers:{_kind}")

if "SAMPLE_IMPORTS" in os.environ:
    with Path(os.environ["SAMPLE_IMPORTS"]).open("a") as _stream:
        _stream.write(f"{os.getpid()}\n")


def nap(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Report progress for a while; write each step to a file if asked to."""
    steps = spec.get("steps", 3)
    for step in range(steps):
        context.progress(step + 1, steps, "naps", "sleeping")
        if "diary" in spec:
            with Path(spec["diary"]).open("a") as stream:
                stream.write(f"{os.getpid()} {step}\n")
        time.sleep(0.02)
    print("slept well")
    return {"slept": steps, "job": os.environ["LANCE_WORKBENCH_JOB"]}


def waits(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Go on until a file appears."""
    while not Path(spec["file"]).exists():
        context.progress(0, None)
        time.sleep(0.02)
    return {}


def fails(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    if spec.get("unless") and Path(spec["unless"]).exists():
        return {}
    raise DataError("picture.png: no picture;\n found text")


def crashes(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def full(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.safetensors")


def exits(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    print("last words", flush=True)
    os._exit(7)


def stubborn(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Hear neither the flag nor SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    context.progress(0, 1)
    while True:
        time.sleep(1)


def family(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Start a process that would outlive us, and never end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(spec["pid_file"]).write_text(str(child.pid))
    while True:
        context.progress(0, None)
        time.sleep(0.05)


def records(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Write a run with outputs without end: something to be killed in the middle of."""
    run_id = context.store.start_run(checkpoint="x", job_id=context.job_id)
    for index in range(spec.get("outputs", 10**9)):
        media = context.store.add_media(os.urandom(2000), "image/png")
        context.store.add_output(run_id, index, sample_key=str(index), text="t" * 500, output_media=media)
        context.progress(index, None, "samples")
    context.store.finish_run(run_id)
    return {"run": run_id}


def where(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    print("here")
    print("and here", file=sys.stderr)
    return {
        "cwd": str(Path.cwd()),
        "session": os.getsid(0) == os.getpid(),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
    }
