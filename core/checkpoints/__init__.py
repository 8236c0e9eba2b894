"""Checkpoints on disk: finding, describing, verifying, fetching and making them, and reading them tensor by tensor.

There are two families: Lance, and causal LMs that transformers loads. ``layout`` knows what the files of each must
hold and what its decoder looks like; everything after reads that.

``describe`` and ``resolve`` read headers and JSON only; they, ``listing`` and ``fetch`` import no torch,
``TensorSource`` only when a tensor is asked for.
"""

from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.resolve import companion, resolve
from core.checkpoints.source import TensorSource

__all__ = ["CheckpointInfo", "TensorSource", "companion", "describe", "resolve"]
