"""The embedded demo: a drawn world, its questions, and a small Lance trained on them.

This package is torch-free at its top; ``drawing``, ``captions``, ``recognise`` and ``suites`` need Pillow and numpy
only. Modules that train (``training``, ``vae_training``, ``rescale``, ``build``) import torch and are run by whoever
rebuilds the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

NAME = "lance-demo"
"""What the embedded checkpoint is called everywhere."""

FOLDER = Path(__file__).parent / "checkpoint"
"""The embedded checkpoint in the layout of upstream's ``downloads/``."""

CHECKPOINT = FOLDER / "Lance_Demo"
"""The model folder of the embedded checkpoint."""

SUITES = Path(__file__).parent / "suites"
"""The folder of the demo suites: ``demo-x2t.json``, ``demo-t2i.json``, and a small one of each other task."""
