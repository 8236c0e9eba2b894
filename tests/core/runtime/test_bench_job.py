"""The benchmark job on a processor: what it measures, records and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import Cancelled, CheckpointError, UsageError
from core.runtime import bench_job
from core.store.measurements import of_run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.cpu_benchmark.SHAPES", {"o": (64, 128)})
    monkeypatch.setattr("kernels.cpu_benchmark.microseconds", lambda call: call() is not None and 2.0)


def checked(context: Any) -> Any:
    context.check = lambda: None
    return context


@pytest.mark.usefixtures("small")
def test_kernels_on_a_processor_are_compared_with_dense_ones(context: Any) -> None:
    done = bench_job.run({"what": ["kernels"], "rows": [1, 3], "device": "cpu"}, checked(context))
    run = context.store.run(done["runs"][0])
    figures = of_run(run)
    assert [(item["rows"], item["implementation"]) for item in figures if item["rows"] == 3] == [
        (3, "bf16"), (3, "float32"), (3, "reference int4-g64"), (3, "torch int4-g64"),
    ]  # fmt: skip
    assert {item["against"] for item in figures} == {1.0}
    assert (run["kind"], run["state"], run["samples"], run["suite"]) == ("bench", "succeeded", 8, "kernels")
    assert run["manifest"]["command_line"] == [
        "lance-workbench", "bench", "--what", "kernels", "--rows", "1,3", "--device", "cpu",
    ]  # fmt: skip
    assert "threads" in run["device"] and any("no GPU" in line for line in context.lines)


def test_a_variant_end_to_end(context: Any, tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, draw = bench_job.benchmark.decode_rate, bench_job.benchmark.picture_time
    short: dict[str, Any] = {"context": 8, "tokens": 2, "repeats": 1}
    monkeypatch.setattr(bench_job.benchmark, "decode_rate", lambda pipeline, **_: decode(pipeline, **short))
    monkeypatch.setattr(
        bench_job.benchmark, "picture_time", lambda pipeline, side, steps, **_: draw(pipeline, side, 2, 1)
    )
    variant = tiny_world.variants["int4-minmax"]["path"]
    spec = {"what": ["end-to-end"], "checkpoints": [variant], "device": "cpu"}
    run = context.store.run(bench_job.run(spec, checked(context))["runs"][0])
    figures = {item["subject"]: item for item in of_run(run)}
    assert list(figures) == ["load", "weights", "decode", "t2i"]
    assert all(item["value"] > 0 for item in figures.values())
    assert run["variant"].startswith("lance-tiny_int4-minmax") and run["checkpoint"] == "lance-tiny"
    assert run["manifest"]["kernel_path"] == "torch-reference:cpu:held"


@pytest.mark.usefixtures("small")
def test_a_cancelled_benchmark_keeps_what_it_measured(context: Any) -> None:
    def cancel() -> None:
        raise Cancelled("job 1: cancelled")

    context.check = cancel
    with pytest.raises(Cancelled):
        bench_job.run({"what": ["kernels"], "device": "cpu"}, context)
    run = context.store.run(context.store.runs("kind=bench")[0]["id"])
    assert run["state"] == "cancelled" and len(of_run(run)) == 1


def test_what_cannot_be_measured_is_one_error(context: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bench 'speed': unknown part; known are kernels, end-to-end"):
        bench_job.run({"what": ["speed"], "device": "cpu"}, context)
    with pytest.raises((UsageError, CheckpointError), match=tmp_path.name):
        bench_job.run({"what": ["end-to-end"], "checkpoints": [str(tmp_path)], "device": "cpu"}, context)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device 'cuda' cannot be used here"):
            bench_job.run({"device": "cuda"}, context)
