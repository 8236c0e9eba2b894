"""Names, paths and devices as a job sees them, wherever it runs."""

from __future__ import annotations

import re

from core.files import expanded

DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
"""The devices that may be asked for; whether there is such a one only the job can tell."""

DEVICES = "auto, cpu, mps, cuda or cuda:N"


def absolute(name: str) -> str:
    """A path by its absolute path; a name of something else stays as it is."""
    path = expanded(name)
    return str(path.resolve()) if name and path.exists() else name


def absolute_suite(name: str) -> str:
    """A suite's name or path, the file of ``text:FILE`` by its absolute path."""
    prose, colon, rest = name.partition(":")
    return f"text:{expanded(rest).resolve()}" if colon and prose == "text" else absolute(name)
