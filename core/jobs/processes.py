"""What can be known about a process that may not be our child: held locks, start ticks, the boot it belongs
to.

A pid alone proves nothing: it may be reused, belong to another boot, or be a dead process that nobody has
reaped yet. A ``flock`` held for life is freed by the kernel the instant its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any


def boot_id() -> str:
    """The kernel's name for this boot; empty where it has none to give."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat behind the command name (state first), or None where there is no such
    process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since the boot; None if it is gone, dead but unreaped, or
    unknowable."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_same(pid: int, ticks: int | None) -> bool:
    """Whether ``pid`` is alive and still the process that started at ``ticks``; existence only, where ticks
    are unknown."""
    if ticks is not None:
        return start_ticks(pid) == ticks
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def take_lock(path: Path, wait_s: float = 0.0) -> int | None:
    """Take an exclusive ``flock`` on ``path``; the descriptor that holds it until it is closed, or None if
    another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        path, os.O_RDWR | os.O_CREAT, 0o644
    )  # close-on-exec: our own children must not keep it
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on ``path``."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        # Shared, so that two who look at the same time do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _group(pgid: int) -> list[int]:
    """The live processes of the group ``pgid`` that are also in the session its leader began."""
    members = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None and fields[0] not in "ZX" and fields[2] == fields[3] == str(pgid):
                members.append(int(name))
    return members


def signal_group(job: dict[str, Any], number: signal.Signals) -> bool:
    """Send a signal to everything in a job's process group, if it is beyond doubt that job's; whether
    anything got it.

    A group outlives its leader, and the kernel gives its number to nobody while it has members: so if the
    leader's pid now names another process, the group is gone; else every member that is in the leader's
    session descends from the worker.
    """
    pid, pgid = job["pid"], job["pgid"]
    if pid is None or pgid is None or pgid <= 1 or pgid == os.getpgrp() or job["boot_id"] != boot_id():
        return False
    ticks = start_ticks(pid)
    if ticks is not None and job["pid_start_ticks"] is not None and ticks != job["pid_start_ticks"]:
        return False
    if Path("/proc/self/stat").exists() and not _group(pgid):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)
        return True
    return False
