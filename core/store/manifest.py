"""The manifest of a run: everything that its figures depend on, as plain JSON.

Torch-free: versions come from package metadata.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.store.clock import now

PACKAGES = (
    "lance-workbench", "torch", "transformers", "diffusers", "safetensors", "numpy", "pillow", "triton",
    "compressed-tensors", "sqlite-utils",
)  # fmt: skip

REQUIRED = (
    "created_at", "versions", "python", "platform", "git", "host", "hardware", "device", "seeds",
    "command_line", "kernel_path", "fingerprints",
)  # fmt: skip
"""The keys that a complete manifest has, none of them None."""


def versions() -> dict[str, str]:
    """Versions of the installed packages among ``PACKAGES``."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found.setdefault("lance-workbench", "source")  # run from a checkout: git says which
    return found


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, Any]:
    """Commit and dirtiness of the source tree this code runs from; ``sha`` is ``installed`` outside a
    checkout."""
    root = Path(__file__).resolve().parents[2]
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"sha": "installed", "dirty": False}
    sha = _output("git", "-C", str(root), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha or "unborn", "dirty": bool(changes)}


def gpus() -> list[dict[str, str]]:
    """Name, UUID, driver and memory of the NVIDIA GPUs that nvidia-smi reports; empty without one."""
    keys = ("index", "name", "uuid", "driver_version", "memory.total")
    text = _output("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader")
    lines = [line.split(", ") for line in (text or "").splitlines()]
    return [
        dict(zip(keys, (cell.strip() for cell in line), strict=True))
        for line in lines
        if len(line) == len(keys)
    ]


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, and GPUs."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": cores, "memory_bytes": memory, "gpus": gpus()}


def collect(
    *,
    device: str | None = None,
    kernel_path: str | None = None,
    seeds: Mapping[str, int] | None = None,
    **fingerprints: str | None,
) -> dict[str, Any]:
    """The manifest of a run that is about to start.

    Args:
        device: where it runs, in words.
        kernel_path: which implementation of the quantized linears is used, such as ``torch``.
        seeds: every seed by what it seeds.
        fingerprints: of what the run depends on: ``checkpoint``, ``calibration``, ``recipe``, ``suite``, …
    """
    return {
        "created_at": now(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(),
        "host": platform.node(),
        "hardware": hardware(),
        "device": device,
        "seeds": None if seeds is None else dict(seeds),
        "command_line": sys.argv,
        "kernel_path": kernel_path,
        "fingerprints": {key: value for key, value in fingerprints.items() if value is not None},
        "job": os.environ.get("LANCE_WORKBENCH_JOB"),
    }


def missing(manifest: Mapping[str, Any] | None) -> list[str]:
    """What a manifest lacks of ``REQUIRED`` (``fingerprints.checkpoint`` among it); empty for a complete
    one."""
    if manifest is None:
        return list(REQUIRED)
    lacking = [key for key in REQUIRED if manifest.get(key) is None]
    if not lacking and not manifest["fingerprints"].get("checkpoint"):
        lacking.append("fingerprints.checkpoint")
    return lacking
