"""From a spec to everything a calibration is decided by, checked before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from core.calibration.predict import Prediction, predict
from core.calibration.samples import DEFAULT_SAMPLES, MIXED, SampleSet, sample_set
from core.calibration.sequences import CAPACITY, most_bytes
from core.calibration.statistics import DEFAULT_ROWS
from core.checkpoints.describe import CheckpointInfo
from core.evaluation.drawings import sampling
from core.evaluation.extent import extent
from core.evaluation.fit import check_task
from core.evaluation.footprint import Footprint, footprint
from core.evaluation.overlap import Evaluated
from core.evaluation.samples import DEFAULT_TASKS, Settings, check_resolution
from core.files import expanded
from core.lance.config import LanceConfig
from core.lance.loading import load_tokenizer
from core.runtime.device import pick_device, pick_dtype
from core.runtime.memory import free_bytes
from core.store import Store

OPTIONS = ("resolution", "height", "width", "num_frames", "num_steps", "max_new_tokens")
"""Settings that a spec may override; they bound tokens, and so memory."""


@dataclass(frozen=True)
class Plan:
    """A calibration that has not begun."""

    info: CheckpointInfo
    chosen: SampleSet
    settings: dict[str, Settings]
    """By task."""
    device: torch.device
    dtype: torch.dtype
    seed: int
    rows: int
    """Rows kept of each input and bucket at most."""
    predicted: Prediction
    needed: Footprint

    def summary(self) -> dict[str, Any]:
        """What a dry run tells."""
        needed = self.needed
        host = needed.kept + (needed.device if self.device.type == "cpu" else 0)
        return {
            "checkpoint": self.info.name,
            "tasks": self.chosen.tasks,
            "samples": len(self.chosen.samples),
            "settings": recorded(self.settings),
            "rows": self.rows,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokens": self.predicted.named(),
            "memory": needed.parts(),
            "device_bytes": host if self.device.type == "cpu" else needed.device,
            "host_bytes": host,
            "free_bytes": free_bytes(self.device),
        }


def make_plan(spec: dict[str, Any], info: CheckpointInfo, store: Store | None) -> Plan:
    """What ``spec`` asks of the checkpoint ``info``.

    A spec has ``tasks``, ``samples`` of each, ``suite`` or ``suites``, ``seed``, ``force``, ``rows``, ``device``,
    ``dtype`` and any of ``OPTIONS``; all may be left out.

    Raises:
        UsageError: samples that cannot be had, settings that Lance does not have, an unknown device or dtype.
        DataError: a file that cannot be read.
        CheckpointError: a video task for an image checkpoint; a damaged checkpoint.
    """
    chosen = samples_of(spec, info, store)
    settings = settings_of(spec, info, chosen)
    for task, found in settings.items():
        check_task(info.path, task, found)
    device = pick_device(str(spec.get("device") or "auto"))
    dtype = pick_dtype(str(spec.get("dtype") or "auto"), device)
    rows = int(spec.get("rows") or DEFAULT_ROWS)
    tokenizer = load_tokenizer(info.path)
    extents = [extent(sample, settings[sample.task], tokenizer) for sample in chosen.samples]
    predicted = predict(extents, settings, chosen.mixed)
    needed = footprint(
        info,
        extents,
        device,
        dtype,
        decode=False,
        together=predicted.longest_mixed,
        buckets=predicted.buckets(),
        capacity=rows,
    )
    needed = replace(needed, sequences=_kept_sequences(predicted, LanceConfig.from_folder(info.path), dtype))
    return Plan(info, chosen, settings, device, dtype, int(spec.get("seed") or 0), rows, predicted, needed)


def _kept_sequences(predicted: Prediction, config: LanceConfig, dtype: torch.dtype) -> int:
    """Bytes of whole sequences held at the end, when each task still has all that there could be room for."""
    tokens: Counter[str] = Counter()
    for buckets in predicted.buckets().values():
        for bucket, count in buckets.items():
            tokens[bucket.partition("/")[0]] += count
    return sum(
        most_bytes(config.hidden_size, config.head_dim, dtype.itemsize, min(count, CAPACITY))
        for count in tokens.values()
    )


def files_of(spec: dict[str, Any]) -> list[str]:
    """The suites that ``spec`` names: ``suite`` is one, ``suites`` are several."""
    return [str(spec["suite"])] if spec.get("suite") else [str(name) for name in spec.get("suites") or []]


def located(names: Sequence[str]) -> list[str]:
    """Suites as a record names them, to be found from any folder: files by their absolute paths, others as they are."""
    paths = {name: expanded(name) for name in names}
    return [str(path.resolve()) if path.is_file() else name for name, path in paths.items()]


def samples_of(spec: dict[str, Any], info: CheckpointInfo, store: Store | None) -> SampleSet:
    """The samples that ``spec`` asks for.

    Raises:
        UsageError, DataError: as ``sample_set``.
    """
    return sample_set(
        info.name,
        list(spec.get("tasks") or DEFAULT_TASKS),
        int(spec.get("samples") or DEFAULT_SAMPLES),
        files_of(spec),
        int(spec.get("seed") or 0),
        evaluated=Evaluated(store),
        force=bool(spec.get("force")),
    )


def settings_of(spec: dict[str, Any], info: CheckpointInfo, chosen: SampleSet) -> dict[str, Settings]:
    """How the samples of each task are run: the checkpoint's defaults, the suite's, and what ``spec`` says.

    Raises:
        UsageError: a resolution, size or frame count that Lance does not have.
    """
    override = {key: spec.get(key) for key in OPTIONS}
    found = {}
    for task in chosen.tasks:
        if task == MIXED:
            continue
        found[task] = Settings.combine(info.defaults, chosen.settings.get(task, {}), override)
        check_resolution(found[task].resolution)
        sampling(found[task])
    return found


def recorded(settings: Mapping[str, Settings]) -> dict[str, Any]:
    """The settings as data: once if all tasks share them, else by task."""
    each = {task: found.recorded(list(settings)) for task, found in settings.items()}
    first = next(iter(each.values()))
    return first if all(found == first for found in each.values()) else each
