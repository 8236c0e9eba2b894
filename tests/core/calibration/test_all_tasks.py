"""Every task drives calibration: which experts and roles each reaches, alone and packed into one sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from core.calibration import job
from core.calibration.plan import make_plan
from core.calibration.record import CalibrationRecord, load_record
from core.calibration.sequences import load_sequences
from core.calibration.statistics import StatisticsFile
from core.checkpoints.describe import describe
from core.errors import UsageError, WorkbenchError
from core.lance import tasks
from core.lance.decoder import target_names
from core.lance.joint import Stream, run_together
from core.lance.requests import Request
from core.lance.roles import Role
from core.lance.video import Clip, write_media

ROLES = {
    "x2t_image": {"text", "vit", "answer"},
    "x2t_video": {"text", "vit", "answer"},
    "text": {"text", "answer"},
    "t2i": {"text", "noisy"},
    "t2v": {"text", "noisy"},
    "i2v": {"text", "clean", "noisy"},
    "image_edit": {"text", "vit", "clean", "noisy"},
    "video_edit": {"text", "vit", "clean", "noisy"},
    "mixed": {"text", "vit", "answer", "clean", "noisy"},
}
DRAWING = ("t2i", "t2v", "i2v", "image_edit", "video_edit")


def files(folder: Path, golden: Path) -> list[str]:
    """A file of every task in Lance's format, a sample or two each."""
    pytest.importorskip("av", reason="needs PyAV (extra `video`)")
    frames = numpy.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), numpy.uint8)
    write_media(folder / "clip.mp4", frames)
    picture = str(golden / "media" / "img1.png")

    def sample(visual: str, kind: str, text: Any, target: int) -> dict[str, Any]:
        return {
            "interleave_array": [visual, text],
            "element_dtype_array": [kind, "text"],
            "istarget_in_interleave": [0, target],
        }

    asked = ["Look at it.", "What is it?", ""]
    contents: dict[str, Any] = {
        "x2t_image.json": {"1": sample(picture, "image", asked, 1)},
        "x2t_video.json": {"1": sample("clip.mp4", "video", asked, 1)},
        "text.txt": "What is a cube?\n",
        "t2i.json": {"0.png": "A red cube.", "1.png": "A green ball."},
        "t2v.json": {"0.mp4": "A red cube turns."},
        "i2v.json": {"1": sample(picture, "image", "It turns.", 0)},
        "image_edit.json": {"1": sample(picture, "image", "Make it blue.", 0)},
        "video_edit.json": {"1": sample("clip.mp4", "video", "Make it blue.", 0)},
    }
    for name, content in contents.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return [str(folder / name) for name in contents]


SMALL = {
    "samples": 2,
    "device": "cpu",
    "dtype": "float32",
    "resolution": "image_256res",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_steps": 3,
    "max_new_tokens": 3,
}


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    suites = files(tmp_path_factory.mktemp("all"), golden)
    return SMALL | {"checkpoint": str(tiny_checkpoint), "suites": suites, "tasks": list(ROLES), "name": "all"}


@pytest.fixture(scope="module")
def record(spec: dict[str, Any], tiny_world: Any) -> CalibrationRecord:
    """A calibration of the tiny model on all tasks at once, mixed sequences among them."""
    return load_record(Path(job.run(spec, tiny_world.context)["path"]))


def test_each_task_shows_the_roles_it_has(record: CalibrationRecord) -> None:
    assert record.tasks == [*(task for task in record.tasks if task != "mixed"), "mixed"]
    assert {task: set(roles) for task, roles in record.by_role().items()} == ROLES


def test_the_generation_expert_is_reached_by_all_that_draw_and_by_nothing_else(
    record: CalibrationRecord,
) -> None:
    for name in target_names(3):
        reached = {bucket.partition("/")[0] for bucket in record.tokens[name]}
        assert reached == ({*DRAWING, "mixed"} if "_moe_gen" in name else set(ROLES)), name


def test_the_whole_schedule_is_seen_and_counts_alike(record: CalibrationRecord) -> None:
    for task in DRAWING:
        assert len(record.timesteps[task]) == SMALL["num_steps"]
        assert len(set(record.timesteps[task].values())) == 1, task


def test_mixed_sequences_hold_each_sample_once(record: CalibrationRecord) -> None:
    """Two sequences: the first has a sample of every task, the second only what has two."""
    table = record.by_role()
    assert (
        table["mixed"]["answer"]
        == sum(table[task]["answer"] for task in ("x2t_image", "x2t_video", "text")) + 3
    )  # the last token of an answer is fed to nothing when it is decoded
    assert (
        table["mixed"]["vit"]
        == table["x2t_image"]["vit"]
        + table["x2t_video"]["vit"]
        + (table["image_edit"]["vit"] + table["video_edit"]["vit"]) // 2
    )  # edits show their source to both guidance branches
    assert len(record.timesteps["mixed"]) == 2
    assert set(record.timesteps["mixed"]) < set(record.timesteps["t2i"])


def test_tokens_are_foretold(
    record: CalibrationRecord, spec: dict[str, Any], tiny_checkpoint: Path, tiny_world: Any
) -> None:
    plan = make_plan(spec, describe(tiny_checkpoint), None)
    predicted = plan.predicted.named()
    assert predicted == record.by_role(), "no answer of the tiny model ends by itself within three tokens"
    folder = Path(tiny_world.context.store.calibration("all")["path"])
    file = StatisticsFile(folder / "statistics.safetensors")
    sequences = load_sequences(folder / "sequences.safetensors")
    assert (
        sum(one.hidden.nbytes + one.cos.nbytes + one.sin.nbytes for one in sequences) <= plan.needed.sequences
    )
    rows = sum(file.moments(key, bucket).rows.nbytes for key in file.keys() for bucket in file.buckets(key))  # noqa: SIM118
    assert plan.needed.rows == 2 * rows
    assert plan.needed.sums == sum(16 * file.moments(key, bucket).sum_sq.numel() for key in file.keys()  # noqa: SIM118
                                   for bucket in file.buckets(key))  # fmt: skip


def test_what_does_not_fit_is_told_before_it_is_loaded(
    spec: dict[str, Any], tiny_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runtime.memory.free_bytes", lambda device: 20_000_000)
    monkeypatch.setattr("core.runtime.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(
        WorkbenchError, match=r"lance-tiny: this takes about .* of cpu in float32 \(weights .* rows"
    ):
        job.run(spec, tiny_world.context)


def test_bounds_bound_the_memory(spec: dict[str, Any], tiny_checkpoint: Path) -> None:
    info = describe(tiny_checkpoint)
    base = make_plan(spec, info, None).needed
    assert make_plan(spec | {"rows": 8}, info, None).needed.rows < base.rows
    clips = spec | {"tasks": ["t2v"], "suites": [name for name in spec["suites"] if "t2v" in name]}
    larger = clips | {"num_frames": 13, "height": 64, "width": 64}
    assert make_plan(larger, info, None).needed.cache > make_plan(clips, info, None).needed.cache
    assert make_plan(spec | {"resolution": "image_512res"}, info, None).needed.activations > base.activations
    more = make_plan(spec | {"num_steps": 6}, info, None).predicted.tokens["i2v"]
    assert more[Role.NOISY] == 2 * make_plan(spec, info, None).predicted.tokens["i2v"][Role.NOISY]
    with pytest.raises(UsageError, match="125 frames asked for; wanted 1 to 121"):
        make_plan(spec | {"num_frames": 125}, info, None)


@torch.inference_mode()
def test_rows_come_out_packed_as_they_do_alone(tiny_pipeline: Any) -> None:
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    clip = Clip([picture, picture.rotate(90)] * 2 + [picture], list(range(5)), 5, 12)
    small: dict[str, Any] = {"resolution": "image_256res"}
    question = tasks.understand(tiny_pipeline, Request("x2t_image", "What?", (picture,), **small))
    answer = [token for token, _ in question.steps(4)]
    scenes = [
        tasks.prepare(tiny_pipeline, request)
        for request in (
            Request("t2i", "a cube", height=32, width=48),
            Request("i2v", "it turns", (picture,), num_frames=5, **small),
            Request("video_edit", "make it blue", (clip,), **small),
        )
    ]
    time = 0.625
    alone = [scene.drawing.velocity(scene.start, time) for scene in scenes]
    streams = [Stream(question.packed, question.features, answer=answer)]
    for scene in scenes:
        drawing = scene.drawing
        streams.append(
            Stream(
                drawing.packed,
                drawing.features,
                drawing.sources,
                latents=scene.start,
                times=drawing.times(time),
            )
        )
    hidden = run_together(tiny_pipeline.model, streams, time)
    logits = tiny_pipeline.model.logits(hidden[0][-len(answer) - 1 : -1])
    assert logits[:, : len(tiny_pipeline.tokenizer)].argmax(-1).tolist() == answer
    for scene, rows, wanted in zip(scenes, hidden[1:], alone, strict=True):
        block = scene.drawing.packed.target.block
        assert block is not None
        found = tiny_pipeline.model.velocity(rows[-block.tokens - 1 : -1])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
