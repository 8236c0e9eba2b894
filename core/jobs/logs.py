"""What the rows and messages keep of errors and logs: one line."""

from __future__ import annotations

import os
from pathlib import Path


def one_line(text: object) -> str:
    """``text`` on one line of at most 500 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 500 else line[:499] + "…"


def last_line(log: Path) -> str:
    """The last line of a log that says something, read from its last 4 KiB; empty if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
            lines = stream.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((one_line(line) for line in reversed(lines) if line.strip()), "")
