"""Devices that no configurations are shipped for; the GPU itself is played."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from core.runtime import tuning
from kernels import config
from kernels.config import Config, Entry, choose, known, nearest_device, tuned_file, tuned_text

NAME = "NVIDIA Imaginary 9000"
CUDA = torch.device("cuda", 1)
ENTRIES = [Entry("int4-g64", 2560, 2048, 1, False, Config("matmul", 8, 32, 2, 2, 3), 4.2)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU of that name; the user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: NAME)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 50, 1 << 50))
    monkeypatch.setattr(tuning, "no_kernels", lambda device: None)
    config._entries.cache_clear()
    choose.cache_clear()
    return tmp_path


def finds(formats: list[str], output: Path, seconds: float) -> None:
    output.write_text(tuned_text(NAME, ENTRIES, {"torch": "2.11"}))


def test_what_was_found_is_kept_and_used(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.needs_tuning(CUDA)
    monkeypatch.setattr("kernels.tune.tune", finds)
    path = tuning.tune(NAME)
    assert path == tuned_file(NAME, gpu / "lance-workbench" / "tuned")
    assert [file.suffix for file in sorted(path.parent.iterdir())] == [".json", ".lock"]
    assert known(NAME) == tuple(ENTRIES) and not tuning.needs_tuning(CUDA)
    assert choose(NAME, 100, "int4-g64", 2560, 2048, 1, False) == ENTRIES[0].config


def test_only_one_process_tunes_a_device(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.tune.tune", lambda *_: pytest.fail("tuned twice"))
    place = tuning.lock_file(NAME)
    place.parent.mkdir(parents=True)
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tuning.tune(NAME) is None


def test_a_failure_leaves_no_file(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(formats: list[str], output: Path, seconds: float) -> None:
        output.write_text("{")
        raise RuntimeError("out of memory")

    monkeypatch.setattr("kernels.tune.tune", fails)
    with pytest.raises(RuntimeError):
        tuning.tune(NAME)
    assert [file.suffix for file in tuning.lock_file(NAME).parent.iterdir()] == [".lock"]
    tuned_file(NAME, config.user_folder()).write_text('{"entries": [{"old": 1}]}')
    assert known(NAME) == () and tuning.needs_tuning(CUDA)


def test_the_background_process_is_started_once_it_is_needed(
    gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 28, 1 << 50))
    tuning.tune_in_background(CUDA)
    assert not started  # too little memory is free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 50, 1 << 50))
    tuning.tune_in_background(CUDA)
    (command, options) = started.pop()
    assert command[1:] == ["-m", "core.runtime.tuning", "1"] and options["start_new_session"]
    monkeypatch.setattr("kernels.tune.tune", finds)
    tuning.tune(NAME)
    assert tuning.tune_in_background(CUDA) is None and not started
    assert tuning.tune_in_background(torch.device("cpu")) is None


def test_the_nearest_device_serves_meanwhile(gpu: Path) -> None:
    assert nearest_device(NAME) is None and nearest_device("NVIDIA A100-SXM4-80GB") is None
    for name in ("NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA GH200 480GB"):
        shipped = choose(config.HOPPER, 132, "int4-g64", 22016, 2048, 1, True)
        assert known(name) == () and choose(name, 132, "int4-g64", 22016, 2048, 1, True) == shipped
