"""The kinds of job and the functions that do them, named by dotted strings so that listing jobs imports
nothing that computes.

A handler is ``run(spec: dict, context: JobContext) -> dict``. Other packages add kinds of their own: modules
named in ``LANCE_WORKBENCH_HANDLERS`` (separated by commas) are imported before the first look-up, here and in
every worker, and call ``register``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UsageError

KINDS: dict[str, str] = {
    "calibrate": "core.calibration.job:run",
    "quantize": "core.quantization.job:run",
    "sensitivity": "core.quantization.sensitivity_job:run",
    "evaluate": "core.evaluation.job:run",
    "bench": "core.runtime.bench_job:run",
    "export": "core.formats.export_job:run",
    "publish": "core.checkpoints.publish_job:run",
}

MEASURING = frozenset({"bench"})
"""Kinds whose results are times: nothing is started beside them that they would measure along."""

HANDLERS_VARIABLE = "LANCE_WORKBENCH_HANDLERS"


def register(kind: str, handler: str) -> None:
    """Add a kind of job whose handler is ``package.module:function``, or replace one."""
    KINDS[kind] = handler


def check(kind: str) -> str:
    """The dotted string of ``kind``'s handler.

    Raises:
        UsageError: an unknown kind.
    """
    for name in filter(None, os.environ.get(HANDLERS_VARIABLE, "").split(",")):
        importlib.import_module(name)
    if kind not in KINDS:
        raise UsageError(f"job kind {kind!r}: unknown; known are {', '.join(KINDS)}")
    return KINDS[kind]


def resolve(kind: str) -> Callable[[dict[str, Any], Any], Mapping[str, Any] | None]:
    """Import and return the handler of ``kind``.

    Raises:
        UsageError: an unknown kind.
    """
    module, _, function = check(kind).partition(":")
    handler: Callable[[dict[str, Any], Any], Mapping[str, Any] | None] = getattr(
        importlib.import_module(module), function
    )
    return handler


def what(kind: str, spec: Mapping[str, Any]) -> str:
    """A job in words: its checkpoint, recipe, tasks, suites, format and repository, as the job list shows it."""
    group = spec.get("group")
    parts = [
        str(spec.get("checkpoint") or ""),
        str(spec.get("recipe") or ""),
        f"g{group}" if isinstance(group, int) and group else str(group or ""),
        " ".join(spec.get("tasks") or ()) if kind == "calibrate" else "",
        " ".join(spec.get("suites") or ()),
        str(spec.get("format") or "") if kind == "export" else "",
        str(spec.get("repo") or "") if kind == "publish" else "",
        *(
            [" ".join(spec.get("what") or ()), " ".join(spec.get("checkpoints") or ())]
            if kind == "bench"
            else ()
        ),
    ]
    return " · ".join(part for part in parts if part)
