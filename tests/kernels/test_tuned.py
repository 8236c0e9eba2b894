"""What was found by tuning and is shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'triton'")

from kernels import direct, early, hopper, tune
from kernels.config import FOLDER, Entry, read_tuned

FILES = sorted(FOLDER.glob("*.json"))
GPU = torch.device("cuda")
PROCESSORS = 132
"""Multiprocessors of an H100."""


def yielded(entry: Entry) -> bool:
    """Whether tuning today would try what ``entry`` holds."""
    config = entry.config
    case = (entry.m, entry.rows, entry.columns, PROCESSORS, GPU)
    if config.kernel == "matmul":
        # In how many parts and with how much asked for ahead depends on what was fastest before.
        return replace(config, splits=1, ahead=None) in tune.kinds(entry.m) and config.splits in tune.SPLITS
    if config.kernel == "expand":
        return entry.m >= 256 and config.chunk % 256 == 0 and config.chunk < entry.rows
    module = {"direct": direct, "early": early, "hopper": hopper}[config.kernel]
    return config in module.candidates(*case)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_result_is_of_a_configuration_that_the_kernels_have(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "available", lambda device: True)
    monkeypatch.setattr(hopper, "available", lambda device: True)
    entries = read_tuned(file)
    cases = {(e.format, e.rows, e.columns, e.m, e.gated) for e in entries}
    assert entries and len(cases) == len(entries)
    for entry in entries:
        assert yielded(entry), entry
        # The gate meets its up only in kernels that divide no K.
        assert not entry.gated or tune._can_gate(entry.config, entry.m), entry
        assert entry.microseconds > 0


def test_there_are_shipped_results() -> None:
    assert FILES
