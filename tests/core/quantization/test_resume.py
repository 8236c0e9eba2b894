"""A job killed at any moment is gone on with, and its files are those of a job that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import Cancelled, RetryLater
from core.files import sha256_file
from core.jobs.processes import take_lock
from core.quantization import job
from core.quantization.unfinished import job_fingerprint, sweep
from core.store import Store

NAME = "lance-tiny_mine-g32"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps, few candidates: a fraction of a second a layer."""
    path = tmp_path_factory.mktemp("recipe") / "mine.toml"
    path.write_text(
        'name = "mine"\n[format]\nbits = 4\ngroup = 32\nsymmetric = false\n[calibration]\nmin_tokens = 1\n'
        "[[steps]]\nkind = 'awq'\nexponents = 2\n[[steps]]\nkind = 'ranges'\n[[steps]]\nkind = 'gptq'\n"
    )
    return path


@pytest.fixture
def spec(recipe: Path, tiny_checkpoint: Path, tiny_world: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(tiny_checkpoint),
        "recipe": str(recipe),
        "calibration": str(tiny_world.calibration),
        "device": "cpu",
    }


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in folder.iterdir()}


def start(spec: dict[str, Any], database: Path) -> int:
    """Run the job in a child process of its own; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # The parent's pool of threads is not there in the child.
            torch.set_num_threads(1)
            with Store.open(database) as store:
                context = type("Context", (), {})()
                context.store, context.job_id, context.data_dir = store, None, store.data_dir
                context.progress, context.log = (lambda *args: None), (lambda text: None)
                job.run(spec, context)
            code = 0
        finally:
            os._exit(code)
    return pid


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kills_at_random_moments_change_nothing(spec: dict[str, Any], tmp_path: Path) -> None:
    began = time.monotonic()
    assert finish(start(spec, tmp_path / "calm" / "runs.db")) == 0
    duration = time.monotonic() - began
    wanted = digests(tmp_path / "calm" / "runs.data" / "variants" / NAME)
    database = tmp_path / "rough" / "runs.db"
    variants = tmp_path / "rough" / "runs.data" / "variants"
    chance, killed, layers_kept = random.Random(7), 0, set()
    while killed < 8:
        pid = start(spec, database)
        time.sleep(duration * chance.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGKILL)
        if finish(pid) == 0:
            shutil.rmtree(variants)  # it was done before the signal came: begin again
            continue
        killed += 1
        kept = len(list((variants / f".{NAME}.work").glob("layer-*.json")))
        layers_kept.add(kept)
        if kept == 0:
            duration *= 1.2  # the machine has become slower than it was for the calm run
        if (variants / NAME).is_dir():
            assert digests(variants / NAME) == wanted
    assert finish(start(spec, database)) == 0
    assert digests(variants / NAME) == wanted
    assert [path.name for path in variants.iterdir()] == [NAME]
    # The kills fell into different layers, so there was something to go on from.
    assert max(layers_kept) >= 1


def test_layers_of_another_recipe_or_of_other_code_are_not_used(
    spec: dict[str, Any], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = context.data_dir / "variants" / NAME
    folder = output.with_name(f".{NAME}.work")
    folder.mkdir(parents=True)
    (folder / "fingerprint").write_text("another")
    (folder / "layer-00000.json").write_text("no layer of this job")
    job.run(spec, context)
    assert not any("went on" in line for line in context.lines)
    assert not folder.exists()
    first = job_fingerprint("a", None)
    monkeypatch.setattr("core.quantization.unfinished.code_fingerprint", lambda: "newer")
    assert job_fingerprint("a", None) != first != job_fingerprint("b", None)


def test_two_jobs_do_not_make_one_variant_at_once(spec: dict[str, Any], context: Any) -> None:
    folder = context.data_dir / "variants" / f".{NAME}.work"
    held = take_lock(folder / "lock")
    assert held is not None
    with pytest.raises(RetryLater, match="another job is making this variant"):
        job.run(spec, context)
    os.close(held)
    job.run(spec, context)


def test_leftovers_are_swept_and_a_variant_moved_aside_comes_back(tmp_path: Path) -> None:
    output = tmp_path / "variant"
    for name in (".variant.partial-123", ".variant.retired-123", ".other.partial-5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    sweep(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-5", "variant"]
    assert (output / "file").read_text() == ".variant.retired-123"
    (tmp_path / ".variant.retired-124").mkdir()
    sweep(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-5", "variant"]


def test_records_survive_being_gone_on_from(spec: dict[str, Any], context: Any) -> None:
    def stop(done: float, *rest: Any) -> None:
        if done == 2:
            raise Cancelled("job 1: cancelled")

    progress, context.progress = context.progress, stop
    with pytest.raises(Cancelled):
        job.run(spec, context)
    context.progress = progress
    done = job.run(spec, context)
    assert "went on from 2 layers" in context.lines[-1]
    assert done["tensors"]["read"] == sum(done["tensors"][key] for key in ("quantized", "folded", "passed"))
    records = json.loads((Path(done["path"]) / "lance_workbench.json").read_text())["linears"]
    assert len(records) == 42
    assert all(record["loss_after"] <= record["loss_before"] for record in records)
    assert {record["rounding"] for record in records} >= {"gptq"}
