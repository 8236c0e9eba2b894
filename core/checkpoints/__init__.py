"""Checkpoints on disk: finding, describing, verifying and reading them tensor by tensor.

``describe`` and ``resolve`` read headers and JSON only and import no torch; ``TensorSource`` imports torch when a
tensor is asked for.
"""

from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.resolve import companion, resolve
from core.checkpoints.source import TensorSource

__all__ = ["CheckpointInfo", "TensorSource", "companion", "describe", "resolve"]
