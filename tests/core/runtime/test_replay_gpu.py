from __future__ import annotations

import gc

import pytest
import torch

from core.runtime.replay import Replayed

pytestmark = pytest.mark.gpu


def test_a_capture_outlives_graphs_that_are_garbage() -> None:
    """What is collected while a graph is captured must not be another graph: freeing one then is an error."""
    device = torch.device("cuda")
    x = torch.zeros(4, device=device)

    class Owner:
        def __init__(self) -> None:
            self.step = Replayed(self.run, device)

        def run(self) -> None:
            gc.collect()
            x.add_(1)

    gc.disable()
    try:
        old, new = Owner(), Owner()
        for _ in range(3):
            old.step()
        new.step()
        del old
        new.step()
        new.step()
    finally:
        gc.enable()
    assert x.tolist() == [6.0] * 4
