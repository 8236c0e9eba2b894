"""Where the baseline's sampler passed, and how a variant's velocity differs there.

Comparing final pictures mixes the error of every step. Here both models are asked for the conditional
velocity at the same x_t and t, the baseline's own, at steps spread evenly over its schedule.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open

from core.errors import DataError
from core.files import replacing
from core.lance.sampler import Trace

STRATA = 5
_VERSION = "1"


@dataclass(frozen=True)
class Trajectory:
    """Kept steps of one picture: ``times`` float32 [S], ``latents`` and ``velocities`` float32 [S, K, 48]."""

    times: torch.Tensor
    latents: torch.Tensor
    velocities: torch.Tensor


def strata(num_steps: int, count: int = STRATA) -> list[int]:
    """The middle step of each of ``count`` equal parts of the schedule (every step if there are fewer)."""
    count = min(count, num_steps)
    return [int((part + 0.5) * num_steps / count) for part in range(count)]


def points(trace: Trace) -> tuple[torch.Tensor, torch.Tensor]:
    """``times`` and ``latents`` of the stratified steps of a sampler's trace."""
    steps = strata(len(trace.times))
    times = torch.tensor([trace.times[step] for step in steps])
    return times, torch.stack([trace.latents[step] for step in steps]).float()


def relative_error(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """||candidate - reference|| / ||reference||, Frobenius over all tokens and channels."""
    difference = torch.linalg.vector_norm(candidate.double() - reference.double())
    return float(difference / torch.linalg.vector_norm(reference.double()))


def save(path: Path, pictures: dict[int, Trajectory]) -> None:
    """Write trajectories by sample index: ``<index>.times``, ``.latents``, ``.velocities``."""
    tensors = {}
    for index, kept in pictures.items():
        for part in ("times", "latents", "velocities"):
            tensors[f"{index}.{part}"] = getattr(kept, part).contiguous()
    with replacing(path) as partial:
        safetensors.torch.save_file(
            tensors,
            partial,
            {
                "format": "lance-workbench trajectory",
                "version": _VERSION,
                "samples": json.dumps(sorted(pictures)),
            },
        )


class TrajectoryFile:
    """Written trajectories, read one sample at a time.

    Raises:
        DataError: the file is missing, truncated or of another format or version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
        except Exception as error:  # safetensors raises its own and OSError alike
            raise DataError(f"{path}: cannot be read ({error}); run the baseline evaluation again") from error
        if metadata.get("format") != "lance-workbench trajectory" or metadata.get("version") != _VERSION:
            raise DataError(
                f"{path}: no trajectories of version {_VERSION}; run the baseline evaluation again"
            )
        self._keys = set(self._file.keys())

    def get(self, index: int) -> Trajectory:
        """The trajectory of sample ``index``."""
        if f"{index}.times" not in self._keys:
            raise DataError(f"{self.path}: sample {index} is missing; run the baseline evaluation again")
        return Trajectory(
            *(self._file.get_tensor(f"{index}.{part}") for part in ("times", "latents", "velocities"))
        )
