"""From a calibration to what the search looks at: rows and magnitudes of a group's input, roles balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core.calibration.record import SEQUENCES_FILE, STATISTICS_FILE
from core.calibration.sequences import load_sequences
from core.calibration.statistics import StatisticsFile
from core.checkpoints.describe import family_of
from core.checkpoints.layout import structure_of
from core.quantization.groups import LinearGroup, Structure
from core.quantization.losses import Inputs
from core.quantization.recipe import ROLES, Recipe
from core.quantization.streams import LayerRunner, Streams


def open_streams(
    checkpoint: Path, calibration: Path, recipe: Recipe, inputs: CalibrationInputs, device: torch.device
) -> Streams | None:
    """The streams of a job, or None where its recipe does not follow the quantized model.

    Args:
        checkpoint: its folder.
        calibration: its folder.
        recipe: how the checkpoint is quantized.
        inputs: the calibration's.
        device: where to compute.

    Raises:
        CheckpointError: the calibration has no sequences, or they are damaged.
    """
    if not recipe.follows:
        return None
    runner, structure = _runner(checkpoint)
    sequences = load_sequences(calibration / SEQUENCES_FILE)
    return Streams(runner, structure, sequences, inputs.worth, device)


def _runner(checkpoint: Path) -> tuple[LayerRunner, Structure]:
    """A decoder layer of a checkpoint's family by itself, and the decoder's structure."""
    if family_of(checkpoint) == "lance":
        from core.lance.config import LanceConfig
        from core.lance.layer import LanceLayer

        config = LanceConfig.from_folder(checkpoint)
        return LanceLayer(config), config.structure
    from core.huggingface.layer import CausalLayer

    return CausalLayer(checkpoint), structure_of(checkpoint)


class CalibrationInputs:
    """Finds a group's ``Inputs``.

    A bucket (task and role) counts what its role does in the recipe, shared evenly among the tasks that
    have the role; roles without tokens are left out and the rest rescaled. The rows that losses are measured
    on are shared evenly among buckets; the rest are the sample that GPTQ is fitted to.
    """

    def __init__(self, folder: Path, recipe: Recipe, thin: Sequence[str], device: torch.device) -> None:
        self._file = StatisticsFile(folder / STATISTICS_FILE)
        self._recipe = recipe
        self._thin = frozenset(thin)
        self._device = device

    def __call__(self, group: LinearGroup) -> Inputs | None:
        """The group's inputs; None where one of its linears saw too few tokens or none that count."""
        if self._thin.intersection(group.linears):
            return None
        weights = self._weights(group)
        if not weights:
            return None
        share = max(1, self._recipe.rows // len(weights))
        fitted = self._recipe.gptq is not None
        moments = [self._file.moments(group.key, bucket, None if fitted else share) for bucket in weights]
        weight = torch.tensor(list(weights.values()), dtype=torch.float32, device=self._device)
        mean_abs = torch.stack([part.sum_abs / part.count for part in moments])
        mean_sq = torch.stack([part.sum_sq / part.count for part in moments])
        energy = mean_sq.mean(-1, keepdim=True).clamp(min=1e-30)
        # What a step fits to rows is scored on others: a bucket gives half of its rows to each if they are few.
        scored = [min(share, -(-len(part.rows) // 2) if fitted else len(part.rows)) for part in moments]
        rows = [part.rows[:count] for part, count in zip(moments, scored, strict=True)]
        sample = [part.rows[count:] for part, count in zip(moments, scored, strict=True)]
        worth = [
            torch.full((len(part),), w / float(e) / max(len(part), 1))
            for part, w, e in zip(sample, weights.values(), energy, strict=True)
        ]
        bucket = torch.cat([torch.full((len(part),), index) for index, part in enumerate(rows)])
        return Inputs(
            torch.cat(rows).to(self._device).float(),
            bucket.to(self._device),
            weight,
            self._balanced(mean_abs, weight),
            self._balanced(mean_sq / energy, weight),
            torch.cat(sample).to(self._device).float(),
            torch.cat(worth).to(self._device),
        )

    def worth(self, group: LinearGroup, tokens: Mapping[str, int]) -> dict[str, float]:
        """What each token of a bucket counts in a group's second moments, of so many ``tokens`` by bucket.

        As the rows of ``Inputs.sample`` count: buckets by their roles' weights, each against its own energy.
        """
        known = set(self._file.buckets(group.key))
        weights = self._shares(group, [bucket for bucket in sorted(tokens) if bucket in known])
        found = {}
        for bucket, weight in weights.items():
            moments = self._file.moments(group.key, bucket, 0)
            energy = float((moments.sum_sq / moments.count).mean().clamp(min=1e-30))
            found[bucket] = weight / energy / tokens[bucket]
        return found

    def _balanced(self, parts: Tensor, weight: Tensor) -> Tensor:
        """The weighed sum [K] of ``parts`` [B, K]."""
        return (parts.to(self._device, torch.float32) * weight.unsqueeze(-1)).sum(0)

    def _weights(self, group: LinearGroup) -> dict[str, float]:
        """What each bucket of the group's input counts; sums to one."""
        return self._shares(group, self._file.buckets(group.key))

    def _shares(self, group: LinearGroup, buckets: Sequence[str]) -> dict[str, float]:
        """What each of some buckets counts if there are no others; sums to one."""
        wanted = self._recipe.role_weights.get(group.expert) or dict.fromkeys(ROLES, 1.0)
        roles = [bucket.rpartition("/")[2] for bucket in buckets]
        raw = {
            bucket: wanted.get(role, 0.0) / roles.count(role)
            for bucket, role in zip(buckets, roles, strict=True)
        }
        total = sum(raw.values())
        return {bucket: weight / total for bucket, weight in raw.items() if weight > 0}
