"""The places a job can run on this machine: the processor, or one GPU. One job at a time on each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Slot(NamedTuple):
    """A place for one job at a time.

    Attributes:
        name: ``cpu``, or a GPU's UUID.
        gpu: the GPU's index, or None for the processor.
        alone: whether the machine has no GPU, so that the processor takes every job.
    """

    name: str
    gpu: int | None = None
    alone: bool = False

    def accepts(self, device: str) -> bool:
        """Whether a job that asks for ``device`` (auto, cpu, cuda, cuda:1, …) may run here."""
        if self.gpu is None:
            return self.alone or device == "cpu"
        return device in ("auto", "cuda", f"cuda:{self.gpu}", self.name)

    def environment(self) -> dict[str, str]:
        """What a worker's environment needs so that it sees this place and no other."""
        if self.gpu is None:
            return {} if self.alone else {"CUDA_VISIBLE_DEVICES": ""}
        return {"CUDA_VISIBLE_DEVICES": self.name}

    def lock_path(self) -> Path | None:
        """The file whose lock means using this GPU, the same for all databases of this user; None for the
        processor."""
        if self.gpu is None:
            return None
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        import tempfile

        base = Path(runtime) if runtime else Path(tempfile.gettempdir()) / f"lance-workbench-{os.getuid()}"
        return base / f"lance-workbench-{self.name}.lock"


def slots() -> list[Slot]:
    """This machine's places: the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, then the processor."""
    from core.store import manifest  # what only supervisors and workers pay for

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else {part.strip() for part in visible.split(",")}
    found = [
        Slot(gpu["uuid"], int(gpu["index"]))
        for gpu in manifest.gpus()
        if allowed is None or gpu["index"] in allowed or gpu["uuid"] in allowed
    ]
    return [*found, Slot("cpu", alone=not found)]


def by_name(name: str) -> Slot:
    """The slot that a supervisor granted under ``name``."""
    return next((slot for slot in slots() if slot.name == name), Slot("cpu", alone=True))
