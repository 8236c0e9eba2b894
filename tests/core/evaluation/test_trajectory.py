"""Where velocities are compared, and by which measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.errors import DataError
from core.evaluation import trajectory
from core.lance.sampler import Trace


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(30, [3, 9, 15, 21, 27]), (5, [0, 1, 2, 3, 4]), (3, [0, 1, 2]), (1, [0]), (8, [0, 2, 4, 5, 7])],
)
def test_steps_are_spread_over_the_whole_schedule(steps: int, expected: list[int]) -> None:
    assert trajectory.strata(steps) == expected


def test_relative_error_by_hand() -> None:
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert trajectory.relative_error(reference, reference) == 0.0
    assert trajectory.relative_error(reference, torch.zeros(2, 2)) == 1.0
    assert trajectory.relative_error(
        reference, reference + torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    ) == pytest.approx(0.1)


def test_points_of_a_trace() -> None:
    trace = Trace(times=[1.0, 0.5], latents=[torch.zeros(4, 48), torch.ones(4, 48)])
    times, latents = trajectory.points(trace)
    assert times.tolist() == [1.0, 0.5]
    assert latents.shape == (2, 4, 48)
    assert latents[1].unique().tolist() == [1.0]


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.safetensors"
    kept = trajectory.Trajectory(torch.tensor([1.0, 0.5]), torch.randn(2, 4, 48), torch.randn(2, 4, 48))
    trajectory.save(path, {7: kept})
    again = trajectory.TrajectoryFile(path).get(7)
    for part in ("times", "latents", "velocities"):
        assert torch.equal(getattr(again, part), getattr(kept, part))
    with pytest.raises(DataError, match="sample 0 is missing"):
        trajectory.TrajectoryFile(path).get(0)
    with pytest.raises(DataError, match=r"no\.safetensors: cannot be read"):
        trajectory.TrajectoryFile(tmp_path / "no.safetensors")
