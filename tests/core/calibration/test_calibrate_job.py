from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.calibration import job
from core.calibration.merge import merge
from core.calibration.record import coverage, load_record, too_few
from core.calibration.samples import DRAWN_FROM, drawn, sample_set
from core.calibration.statistics import StatisticsFile
from core.errors import CheckpointError, UsageError
from core.evaluation import suites


def test_a_calibration_says_what_it_was_taken_from(tiny_world: Any) -> None:
    question, prompt = (load_record(folder) for folder in tiny_world.parts)
    unseen = too_few(coverage(question.tokens), 1)
    assert len(unseen) == 21 and all("_moe_gen" in row.linear for row in unseen)
    assert (question.tasks, prompt.tasks) == (["x2t_image"], ["t2i"])
    assert question.samples == ["x2t_image/0001", "x2t_image/0003"]
    assert question.checkpoint == "lance-tiny" and question.dtype == "float32"
    assert question.checkpoint_fingerprint == prompt.checkpoint_fingerprint
    assert len(prompt.timesteps["t2i"]) == 8
    assert len(set(prompt.timesteps["t2i"].values())) == 1
    row = tiny_world.context.store.calibration("t2i")
    assert row["samples"] == 2 and row["tokens"] == prompt.total_tokens


def test_the_run_is_recorded_with_its_manifest(tiny_world: Any) -> None:
    runs = tiny_world.context.store.runs("kind:calibrate")
    assert {run["state"] for run in runs} == {"succeeded"}
    manifest = tiny_world.context.store.run(runs[0]["id"])["manifest"]
    assert manifest["fingerprints"]["checkpoint"] and manifest["fingerprints"]["data"]
    assert manifest["seeds"] == {"samples": 0, "rows": 0}


def test_calibrating_twice_gives_the_same_statistics(
    context: Any, tiny_world: Any, tiny_checkpoint: Path
) -> None:
    suite = tiny_world.parts[0].parents[2] / "questions.json"
    spec = {"checkpoint": str(tiny_checkpoint), "tasks": ["x2t_image"], "samples": 2, "suite": str(suite)}
    spec |= {"device": "cpu", "dtype": "float32", "resolution": "image_256res", "name": "x2t_image"}
    done = job.run(spec, context)
    assert done["fingerprint"] == load_record(tiny_world.parts[0]).fingerprint
    assert done["unseen_linears"] == 21


def test_merging_adds_up_and_keeps_the_parts_apart(tiny_world: Any) -> None:
    merged = load_record(tiny_world.calibration)
    parts = [load_record(folder) for folder in tiny_world.parts]
    assert merged.merged_from == [part.fingerprint for part in parts]
    assert merged.tasks == ["t2i", "x2t_image"]
    assert merged.total_tokens == sum(part.total_tokens for part in parts)
    file = StatisticsFile(tiny_world.calibration / "statistics.safetensors")
    assert file.buckets("layers.0.gen.qkv") == ["t2i/noisy"]


def test_only_calibrations_of_one_checkpoint_merge(tiny_world: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are the same calibration"):
        merge([tiny_world.parts[0], tiny_world.parts[0]], tmp_path / "out", "out")
    with pytest.raises(UsageError, match="1 calibrations given"):
        merge(tiny_world.parts[:1], tmp_path / "out", "out")
    other = tmp_path / "other"
    shutil.copytree(tiny_world.parts[1], other)
    import dataclasses

    record = dataclasses.replace(load_record(other), checkpoint="lance-3b", checkpoint_fingerprint="f" * 64)
    (other / "calibration.json").write_text(record.to_json())
    with pytest.raises(UsageError, match=r"t2i is of lance-3b, x2t_image of lance-tiny"):
        merge([tiny_world.parts[0], other], tmp_path / "out", "out")
    assert not (tmp_path / "out").exists()


def test_damage_is_named(tiny_world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_world.parts[0], folder)
    record = folder / "calibration.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match=r"calibration\.json: does not match its own fingerprint"):
        load_record(folder)
    record.write_text("{")
    with pytest.raises(CheckpointError, match="no calibration record"):
        load_record(folder)
    with pytest.raises(UsageError, match="no calibration: it has no"):
        load_record(tmp_path)


def test_the_coverage_table_names_what_was_seen_too_little() -> None:
    tokens = {"a": {"t2i/noisy": 10, "t2i/clean": 5}, "b": {"t2i/noisy": 3}}
    table = coverage(tokens, ["a", "b", "c"])
    assert [row.tokens for row in table] == [15, 3, 0]
    assert [row.linear for row in too_few(table, 4)] == ["b", "c"]


def test_drawn_samples_are_none_of_the_suites_and_differ_by_seed() -> None:
    first, second = (sample_set("lance-demo", ["x2t_image", "t2i"], 25, [], seed) for seed in (0, 1))
    assert first.tasks == ["x2t_image", "t2i"]
    assert len({sample.pictures[0].kind for sample in first.samples[:21]}) == 21
    assert first.fingerprint({}) != second.fingerprint({})
    assert {s.key for s in first.samples}.isdisjoint(s.key for s in second.samples)
    for name in suites.names():
        for sample in suites.load(name).samples:
            assert all(picture.seed < DRAWN_FROM for picture in sample.pictures)
    assert [s.question for s in drawn("x2t_image", 3, 0)] == [s.question for s in first.samples[:3]]


@pytest.mark.parametrize(
    ("tasks", "count", "suite", "message"),
    [
        (["t2x"], 4, None, r"task 't2x' cannot be calibrated; tasks are x2t_image, t2i"),
        (["t2i"], 0, None, r"0 samples of 1 tasks"),
        (["t2i"], 4, None, r"lance-3b: calibrate it on samples of its own kind: give --suite FILE"),
        (["x2t_image"], 4, "prompts.json", r"prompts\.json: holds t2i samples, asked for x2t_image"),
    ],
)
def test_what_cannot_be_sampled_is_said(
    tmp_path: Path, tasks: list[str], count: int, suite: str | None, message: str
) -> None:
    if suite is not None:
        (tmp_path / suite).write_text(json.dumps({"000000.png": "A ball."}))
        suite = str(tmp_path / suite)
    with pytest.raises(UsageError, match=message):
        sample_set("lance-3b", tasks, count, [suite] if suite else [], 0)
