"""What can be exported as what: the formats, and a request checked before anything is computed. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError, WorkbenchError
from core.files import expanded
from core.store import Store

PLACE = "exports"
"""Folder beside the database that exports are written to unless another is asked for."""


@dataclass(frozen=True)
class ExportFormat:
    """A format that other programs read."""

    exporter: str
    """``module:function`` of ``(source, output, say) -> Exported``."""
    about: str
    """For help: what reads it."""
    packages: tuple[str, ...] = ()
    """Modules that its exporter imports and that are not among the base dependencies."""
    extra: str = ""
    """The extra that brings them."""


FORMATS: dict[str, ExportFormat] = {
    "huggingface": ExportFormat(
        "core.formats.huggingface_export:export",
        "A folder that transformers loads with AutoModelForCausalLM: Lance's understanding expert, for text.",
    ),
    "mlx": ExportFormat(
        "core.formats.mlx_export:export", "A folder that mlx-lm runs on a Mac.", ("mlx", "mlx_lm"), "mlx"
    ),
    "coreml": ExportFormat(
        "core.formats.coreml_export:export",
        "A package that Core ML runs on a Mac or a phone.",
        ("coremltools",),
        "coreml",
    ),
}
"""By name, as the command line has them."""


@dataclass(frozen=True)
class ExportRequest:
    """A job's spec, looked up."""

    info: CheckpointInfo
    format: str
    output: Path


def look_up(spec: Mapping[str, Any], store: Store) -> ExportRequest:
    """Resolve a spec: ``checkpoint`` (a checkpoint's or variant's name or folder), ``format`` and ``output`` (None puts
    it beside the database).

    Raises:
        UsageError: an unknown format or checkpoint, one that has this format already, or an output that is taken.
        CheckpointError: a folder that is incomplete or damaged.
        WorkbenchError: a package that the format needs is not installed.
    """
    name = str(spec["format"])
    info = describe(resolve(str(spec["checkpoint"]), store))
    check_format(name, info)
    output = place_of(store, name, info, spec.get("output"))
    check_output(output)
    return ExportRequest(info, name, output)


def place_of(store: Store, name: str, info: CheckpointInfo, given: str | None) -> Path:
    """Where an export goes: the place that was asked for, or one beside the database."""
    return expanded(given).resolve() if given else store.data_dir / PLACE / f"{info.name}_{name}"


def check_format(name: str, info: CheckpointInfo) -> None:
    """Check that a checkpoint or variant can be exported as ``name`` on this machine.

    Raises:
        UsageError: an unknown format, or the one that it has already.
        WorkbenchError: a package that the format needs is not installed.
    """
    if name not in FORMATS:
        raise UsageError(f"format {name!r}: unknown; known are {', '.join(FORMATS)}")
    if name == "huggingface":
        check_lance(info)
    _check_packages(name)


def check_lance(info: CheckpointInfo) -> None:
    """Check that what is exported for transformers is not what transformers loads already.

    Raises:
        UsageError: it is.
    """
    if info.family == "huggingface":
        raise UsageError(
            f"{info.name}: is a Hugging Face model already; copy {info.path} or load it from there as it is, "
            f"or export it as {' or '.join(name for name in FORMATS if name != 'huggingface')}"
        )


def check_output(output: Path) -> None:
    """Check that an export may be written at ``output``: nothing is there, or an empty folder.

    Raises:
        UsageError: something is there, which would be lost.
    """
    if output.is_dir():
        if any(output.iterdir()):
            raise UsageError(f"{output}: a folder that holds something; remove it or choose another --output")
    elif output.exists() or output.is_symlink():
        raise UsageError(f"{output}: a file; choose another --output for the folder of the export")


def _check_packages(name: str) -> None:
    chosen = FORMATS[name]
    missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise WorkbenchError(
            f"export as {name}: {missing[0]} is not installed; "
            f'`pip install "lance-workbench[{chosen.extra}]"` brings it'
        )
