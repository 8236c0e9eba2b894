"""What a person sees of errors that are no ``WorkbenchError``: one line, and for our own faults a file to report."""

from __future__ import annotations

import os
from pathlib import Path


def of_system(error: OSError) -> str | None:
    """What the operating system refused, naming the file; None where there is none to name."""
    if isinstance(error.filename, str | bytes):
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the current folder is gone; change to another"
    return None


def unexpected(error: BaseException) -> str:
    """A fault of the program's own in words; its traceback is written to a file, which is named."""
    import tempfile
    import traceback

    head = f"{type(error).__name__}: {error}".removesuffix(": ")
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="lance-workbench-",
            suffix=".txt",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{head}; this is a fault of lance-workbench's own"
    return f"{head}; this is a fault of lance-workbench's own, to be reported with {file.name}"
