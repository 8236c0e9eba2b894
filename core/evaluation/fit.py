"""Whether a checkpoint is made for the samples it is to run, and whether they fit into memory; reads headers only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from core.checkpoints.describe import describe
from core.evaluation.extent import extent
from core.evaluation.footprint import check_fit, footprint
from core.evaluation.samples import TEXT, Sample, Settings
from core.lance.buckets import check_frames
from core.lance.loading import load_tokenizer
from core.lance.position_table import check_checkpoint


def check_task(folder: Path, task: str, settings: Settings) -> None:
    """Check that the checkpoint or variant in ``folder`` does ``task`` with so many frames.

    Raises:
        CheckpointError: a video task for an image checkpoint.
        UsageError: a first frame that no other follows.
    """
    if task != TEXT:
        check_checkpoint(folder, task)
    if task == "i2v":
        check_frames(settings.num_frames, task)


def check_samples(
    folder: Path, samples: Iterable[tuple[Sample, Settings]], device: torch.device, dtype: torch.dtype
) -> None:
    """Check that the checkpoint or variant in ``folder`` can run every one of ``samples`` on ``device``.

    Raises:
        WorkbenchError: not enough memory; what takes how much is named.
        UsageError, DataError: special tokens in a sample's words, a size that Lance does not have, a file that is gone.
    """
    info, tokenizer = describe(folder), load_tokenizer(folder)
    extents = [extent(sample, settings, tokenizer) for sample, settings in samples]
    check_fit(info, footprint(info, extents, device, dtype), device, dtype)
