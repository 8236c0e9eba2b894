from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_variant_gpu covers machines with a GPU")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the extra 'triton'")
def test_a_loaded_variant_runs_on_the_kernels() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, where its functions are defined."""
    file = Path(__file__).parent / "interpreted_variant.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
