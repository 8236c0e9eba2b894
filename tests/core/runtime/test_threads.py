from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.checkpoints.describe import describe
from core.demo import CHECKPOINT
from core.runtime.device import SMALL, suit_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_embedded_checkpoint_computes_in_one_thread() -> None:
    suit_threads(describe(CHECKPOINT).nbytes, CPU)
    assert torch.get_num_threads() == 1


def test_larger_models_and_gpus_keep_their_threads() -> None:
    suit_threads(SMALL + 1, CPU)
    suit_threads(1, torch.device("cuda"))
    assert torch.get_num_threads() == 2


def test_a_number_of_threads_that_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    suit_threads(1, CPU)
    assert torch.get_num_threads() == 2
