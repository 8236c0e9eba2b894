"""The bf16 evaluation that another one is scored against: found by what it was run on, opened, checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import DataError, UsageError
from core.evaluation.samples import ANSWERING, PERPLEXITY, Sample
from core.store import Store

LIKELIHOOD, TRAJECTORY = "likelihood.safetensors", "trajectory.safetensors"
"""What a bf16 evaluation of a task that answers, or of one that draws, keeps beside the database for others to be
scored against."""

_INCOMPARABLE = "they cannot be compared, leave the baseline on auto"

BF16 = "bf16"
"""The recipe of the source checkpoint's own runs."""


def run_folder(store: Store, run_id: int) -> Path:
    """Where a run keeps files too large for the database."""
    return store.data_dir / "runs" / str(run_id)


@dataclass(frozen=True)
class Baseline:
    """A finished bf16 evaluation with its kept file."""

    store: Store
    run: dict[str, Any]

    @property
    def artifact(self) -> Path:
        """The file of log-probabilities or trajectories."""
        kept = LIKELIHOOD if self.run["task"] in (*ANSWERING, PERPLEXITY) else TRAJECTORY
        return run_folder(self.store, self.run["id"]) / kept

    @cached_property
    def _outputs(self) -> dict[int, dict[str, Any]]:
        return {row["idx"]: row for row in self.store.outputs(self.run["id"])}

    def output(self, index: int, sample: Sample) -> dict[str, Any]:
        """The baseline's output of a sample.

        Raises:
            DataError: the baseline does not have it.
        """
        row = self._outputs.get(index)
        if row is None or row["sample_key"] != sample.key:
            raise DataError(
                f"run {self.run['id']}: sample {sample.key} is missing; run the baseline evaluation again"
            )
        return row


def find(store: Store, checkpoint: str, task: str, spec_hash: str) -> Baseline | None:
    """The newest bf16 evaluation of the same samples and settings that still has its file, or None.

    Runs that were themselves scored against a baseline (the noise floor) are not taken.
    """
    row = store.latest_run(
        kind="evaluate",
        checkpoint=checkpoint,
        task=task,
        recipe=BF16,
        spec_hash=spec_hash,
        baseline_run_id=None,
    )
    if row is None:
        return None
    found = Baseline(store, row)
    return found if found.artifact.is_file() else None


def chosen(store: Store, run_id: int, suite: str, evaluation: dict[str, Any]) -> Baseline:
    """The run a user named as the baseline, if the same checkpoint answered the same samples under the same settings.

    ``evaluation`` is what is about to be run on the suite of that name, as ``conditions.shared`` has it.

    Raises:
        UsageError: there is no such run; it is of a variant, unfinished, of another checkpoint, other samples or
            settings, was scored against another run itself, or its kept file is gone.
    """
    row = store.run(run_id)
    if row["recipe"] != BF16 or row["state"] != "succeeded" or row["kind"] != "evaluate":
        raise UsageError(
            f"run {run_id} is {row['state']}, of {row['name']}: wanted a finished evaluation of a bf16 checkpoint"
        )
    theirs = (row["manifest"] or {}).get("evaluation", {})
    if theirs.get("suite") != evaluation["suite"]:
        had, has = (
            f"suite {name} of {samples} samples"
            for name, samples in ((row["suite"], row["samples"]), (suite, evaluation["samples"]))
        )
        other = " of other content" if had == has else ""
        raise UsageError(f"run {run_id} had {had}{other}, this evaluation has {has}; {_INCOMPARABLE}")
    if theirs.get("settings") != evaluation["settings"]:
        raise UsageError(
            f"run {run_id} had settings {theirs.get('settings')}, this evaluation has {evaluation['settings']}; "
            f"{_INCOMPARABLE}"
        )
    if theirs.get("source") != evaluation["source"]:
        raise UsageError(
            f"run {run_id} is of {row['name']}, not of the checkpoint evaluated here or what it was made from; "
            f"{_INCOMPARABLE}"
        )
    if row["baseline_run_id"] is not None:
        raise UsageError(
            f"run {run_id} was scored against run {row['baseline_run_id']} itself and keeps nothing to score "
            f"against; give --baseline {row['baseline_run_id']}, or leave it on auto"
        )
    found = Baseline(store, row)
    if not found.artifact.is_file():
        raise UsageError(
            f"{found.artifact}: gone, so run {run_id} cannot be scored against; leave the baseline on auto"
        )
    return found
