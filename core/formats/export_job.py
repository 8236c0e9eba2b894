"""The job ``export``: from a checkpoint's or variant's name to a folder that another program reads."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import WorkbenchError
from core.files import disk_errors
from core.formats.export_request import FORMATS, look_up
from core.formats.exported import Exported
from core.jobs import processes
from core.jobs.context import JobContext

Exporter = Callable[[Path, Path, Callable[[str], None]], Exported]


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Export as ``spec`` says (``export_request.look_up``); the output appears under its final name whole or not at
    all.

    Raises:
        UsageError, CheckpointError, WorkbenchError: what is wrong with the spec, the files or the disk.
        Cancelled: asked to stop.
    """
    started = time.monotonic()
    request = look_up(spec, context.store)
    steps = 0

    def say(text: str) -> None:
        nonlocal steps
        context.log(text)
        context.progress(steps, None, "steps", text)
        steps += 1

    say(f"{request.info.name}: exported as {request.format} to {request.output}")
    _sweep(request.output)
    exported = _exporter(request.format)(request.info.path, request.output, say)
    for each in exported.left_out:
        context.log(f"left out: {each}")
    return {
        "checkpoint": request.info.name,
        "format": request.format,
        "path": str(exported.path),
        "size_bytes": exported.size_bytes,
        "left_out": list(exported.left_out),
        "loads_with": exported.loads_with,
        "files": exported.files,
        "fingerprint": request.info.fingerprint,
        "seconds": round(time.monotonic() - started, 3),
    }


def _exporter(name: str) -> Exporter:
    chosen = FORMATS[name]
    module, _, function = chosen.exporter.partition(":")
    try:
        exporter: Exporter = getattr(importlib.import_module(module), function)
    except ImportError as error:
        advice = f'; `pip install "lance-workbench[{chosen.extra}]"`' if chosen.extra else ""
        raise WorkbenchError(f"export as {name}: cannot be imported ({error}){advice}") from error
    return exporter


def _sweep(output: Path) -> None:
    """Remove what killed jobs left beside ``output``; another that is still at it keeps its own."""
    for partial in output.parent.glob(f".{output.name}.partial-*"):
        writer = partial.name.rpartition("-")[2]
        if writer.isdecimal() and not processes.is_same(int(writer), None):
            with disk_errors(partial):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
