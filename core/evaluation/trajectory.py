"""Where the baseline's sampler passed, and how a variant's velocity differs there.

Comparing final pictures mixes the error of every step. Here both models are asked for the conditional
velocity at the same x_t and t, the baseline's own, at steps spread evenly over its schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from core.evaluation.artifact import ArtifactFile, save_artifact
from core.lance.sampler import Trace

STRATA = 5


@dataclass(frozen=True)
class Trajectory:
    """Kept steps of one picture or clip: ``times`` float32 [S], ``latents`` float32 [S, K, 48], and ``velocities``
    alike, of the tokens that are not given.
    """

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
    save_artifact(path, "trajectory", tensors, pictures)


class TrajectoryFile(ArtifactFile):
    """Written trajectories, read one sample at a time.

    Raises:
        DataError: the file is missing, truncated or of another format or version.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "trajectory")

    def get(self, index: int) -> Trajectory:
        """The trajectory of sample ``index``."""
        return Trajectory(*(self.tensor(index, part) for part in ("times", "latents", "velocities")))
