"""Recipes that go by the inputs of the quantized model: what they gain, what they need, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.calibration.record import RECORD_FILE, SEQUENCES_FILE, load_record
from core.calibration.sequences import load_sequences
from core.errors import CheckpointError, UsageError
from core.files import sha256_file
from core.quantization import job
from core.quantization.inputs import CalibrationInputs, open_streams
from core.quantization.recipe import load
from core.store import Store

RECIPE = """
name = "{name}"
[format]
bits = {bits}
group = 32
symmetric = false
[calibration]
min_tokens = 64
[[steps]]
kind = "values"
exponents = 2
[[steps]]
kind = "awq"
exponents = 2
[[steps]]
kind = "ranges"
[[steps]]
kind = "gptq"
inputs = "{inputs}"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The path of a recipe of all steps, with few candidates."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(inputs: str, bits: int = 3) -> str:
        path = folder / f"{inputs}-{bits}.toml"
        path.write_text(RECIPE.format(name=f"by-{inputs}", bits=bits, inputs=inputs))
        return str(path)

    return write


@pytest.fixture
def spec(recipe: Callable[..., str], tiny_checkpoint: Path, tiny_world: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(tiny_checkpoint),
        "recipe": recipe("quantized"),
        "calibration": str(tiny_world.calibration),
        "device": "cpu",
    }


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in folder.iterdir()}


def run_and_die(spec: dict[str, Any], database: Path, step: int | None) -> int:
    """Run the job in a child process that kills itself before layer ``step``; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # The parent's pool of threads is not there in the child.
            torch.set_num_threads(1)

            def progress(done: float, *rest: Any) -> None:
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            with Store.open(database) as store:
                context = type("Context", (), {})()
                context.store, context.job_id, context.data_dir = store, None, store.data_dir
                context.progress, context.log = progress, (lambda text: None)
                job.run(spec, context)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_killed_job_goes_on_to_the_same_bytes(spec: dict[str, Any], tmp_path: Path) -> None:
    name = "lance-tiny_by-quantized-g32"
    assert run_and_die(spec, tmp_path / "calm" / "runs.db", None) == 0
    wanted = digests(tmp_path / "calm" / "runs.data" / "variants" / name)
    database, kept = tmp_path / "rough" / "runs.db", []
    variants = tmp_path / "rough" / "runs.data" / "variants"
    for step in (1, 2, 3):
        assert run_and_die(spec, database, step) == -signal.SIGKILL
        kept.append(len(list((variants / f".{name}.work").glob("layer-*.json"))))
    assert kept[-1] >= 1 and kept == sorted(kept), "there was something to go on from"
    assert run_and_die(spec, database, None) == 0
    assert digests(variants / name) == wanted


def test_every_group_follows_and_says_how_far(spec: dict[str, Any], context: Any) -> None:
    done = job.run(spec, context)
    records = json.loads((Path(done["path"]) / "lance_workbench.json").read_text())["linears"]
    assert len(records) == 42 and all(0 <= record["correction"] <= 1 for record in records)
    later = [record["correction"] for record in records if ".layers.0." not in record["linear"]]
    assert max(later) > 0.5


def test_a_dry_run_counts_what_is_carried_along(
    spec: dict[str, Any], recipe: Callable[..., str], context: Any
) -> None:
    plans = [
        job.run(spec | {"recipe": recipe(inputs), "dry_run": True}, context)["plan"]
        for inputs in ("original", "quantized")
    ]
    assert plans[0]["size_bytes"] == plans[1]["size_bytes"]
    for peak in ("device_peak_bytes", "host_peak_bytes"):
        assert plans[0][peak] < plans[1][peak]


def older(calibration: Path, folder: Path) -> Path:
    """A calibration as it was before sequences were kept."""
    shutil.copytree(calibration, folder)
    (folder / SEQUENCES_FILE).unlink()
    record = dataclasses.replace(load_record(folder), sequences_sha256="", sequence_tokens={})
    (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return folder


def test_a_calibration_without_sequences_is_refused_with_the_next_step(
    spec: dict[str, Any], recipe: Callable[..., str], tiny_world: Any, context: Any, tmp_path: Path
) -> None:
    folder = older(tiny_world.calibration, tmp_path / "older")
    with pytest.raises(
        UsageError,
        match=r'keeps no sequences, .* calibrate again, or set inputs = "original" in the gptq step',
    ):
        job.run(spec | {"calibration": str(folder)}, context)
    assert not (context.data_dir / "variants").exists()
    job.run(spec | {"calibration": str(folder), "recipe": recipe("original")}, context)


def test_sequences_of_one_expert_alone_are_refused(
    spec: dict[str, Any], tiny_world: Any, context: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "und"
    shutil.copytree(tiny_world.calibration, folder)
    record = load_record(folder)
    und = {bucket: count for bucket, count in record.sequence_tokens.items() if "noisy" not in bucket}
    (folder / RECORD_FILE).write_text(dataclasses.replace(record, sequence_tokens=und).to_json())
    with pytest.raises(UsageError, match="its sequences hold no token of the gen expert"):
        job.run(spec | {"calibration": str(folder)}, context)


def test_changed_sequences_are_noticed(
    spec: dict[str, Any], tiny_world: Any, context: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_world.calibration, folder)
    content = bytearray((folder / SEQUENCES_FILE).read_bytes())
    content[-1] ^= 1
    (folder / SEQUENCES_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sequences\.safetensors: truncated or changed"):
        job.run(spec | {"calibration": str(folder)}, context)


def test_an_unknown_word_for_the_inputs_is_named(recipe: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"steps\[3\].inputs has 'rounded'; there are original, quantized"):
        load(recipe("rounded"))


def test_sequences_count_as_the_recorded_rows_do(spec: dict[str, Any], tiny_world: Any) -> None:
    recipe = load(str(spec["recipe"]))
    inputs = CalibrationInputs(tiny_world.calibration, recipe, [], torch.device("cpu"))
    streams = open_streams(
        Path(spec["checkpoint"]), tiny_world.calibration, recipe, inputs, torch.device("cpu")
    )
    assert streams is not None
    known = load_sequences(tiny_world.calibration / SEQUENCES_FILE)
    assert [len(one) for one in known] == [len(x) for x in streams.exact]
    from core.lance.structure import lance_structure

    group = lance_structure(3).layer_groups(0)[0]
    recorded = inputs(group)
    assert recorded is not None
    tokens = dict.fromkeys(load_record(tiny_world.calibration).sequence_tokens, 50)
    worth = inputs.worth(group, tokens)
    assert set(worth) == {bucket for bucket in tokens if "noisy" not in bucket}
    total = sum(50 * each for each in worth.values())
    assert total == pytest.approx(float(recorded.sample_weight.sum()), rel=1e-4)
