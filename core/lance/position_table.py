"""The table of latent positions in a checkpoint: how many frames it has tells what the checkpoint was made for.

Reads headers only, and imports nothing that computes.
"""

from __future__ import annotations

from pathlib import Path

from core.checkpoints.describe import own_record
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.lance.config import MAX_LATENT_SIDE
from core.lance.prompts import VIDEO_TASKS

POSITION_TABLE = "latent_pos_embed.pos_embed"


def table_frames(folder: Path) -> int | None:
    """Latent frames of the position table a checkpoint was released with: 1 for images, 31 for video.

    A variant has the table of the checkpoint it was made from. None where neither stores one.
    """
    source = TensorSource.open(folder)
    if POSITION_TABLE in source:
        return source.shape(POSITION_TABLE)[0] // MAX_LATENT_SIDE**2
    origin = own_record(folder).get("source_path")
    if origin and Path(origin).is_dir() and Path(origin).resolve() != folder.resolve():
        return table_frames(Path(origin))
    return None


def check_checkpoint(folder: Path, task: str) -> None:
    """Check that the checkpoint or variant in ``folder`` was made for ``task``; reads headers only.

    Raises:
        CheckpointError: a video task for a checkpoint whose position table has a single frame.
    """
    if task in VIDEO_TASKS and table_frames(folder) == 1:
        raise CheckpointError(
            f"{folder}: an image checkpoint ({POSITION_TABLE} has one frame) cannot do {task}; "
            "use the video checkpoint, for example Lance_3B_Video"
        )
