"""What the observers count and sum on the tiny model is what upstream's run of the same samples had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.calibration.collect import stratified
from core.calibration.observers import Observer
from core.calibration.statistics import Statistics
from core.lance.generation import Understanding, drawing
from core.lance.sampler import Sampling, sample
from core.lance.structure import lance_structure


def observe_question(pipeline: Any, golden: Path, name: str, recorded: dict[str, torch.Tensor]) -> Statistics:
    """Answer the recorded question from the recorded visual features, one token at a time."""
    meta = json.loads((golden / "tasks" / name / "meta.json").read_text())
    items = meta["sample"]["interleave_array"]
    instruction, question, _answer = next(item for item in items if isinstance(item, list))
    grids = [(t, h // 2, w // 2) for t, h, w in recorded["data.vit_video_grid_thw"].tolist()]
    features = recorded["vit.features"].split([t * h * w for t, h, w in grids])
    statistics = Statistics()
    with torch.inference_mode(), Observer(pipeline.model, statistics) as observer:
        observer.task = "x2t_image"
        understanding = Understanding(pipeline, features, grids, question, instruction)
        tokens = [token for token, _ in understanding.steps(len(recorded["out.tokens"]))]
    assert tokens == recorded["out.tokens"].tolist()
    return statistics


def compare(statistics: Statistics, recorded: dict[str, torch.Tensor], layers: int) -> None:
    for group in lance_structure(layers).groups():
        for name in group.linears:
            if f"act.{name}.count" not in recorded:
                assert name not in statistics.tokens
                continue
            buckets = statistics.moments[group.key].values()
            count = sum(bucket.count for bucket in buckets)
            assert count == sum(statistics.tokens[name].values()) == int(recorded[f"act.{name}.count"][0])
            mean = sum(bucket.sum_abs for bucket in buckets) / count
            wanted = recorded[f"act.{name}.mean_abs"].double()
            assert float(((mean - wanted).abs() / wanted).max()) < 1e-4, name


def test_a_picture_question_is_counted_as_upstream_does(tiny_pipeline: Any, golden: Path) -> None:
    recorded = load_file(golden / "tasks" / "x2t_image_1" / "tensors.safetensors")
    if "act.language_model.model.layers.0.self_attn.q_proj.count" not in recorded:
        pytest.skip("this copy of the golden tensors has no activation statistics")
    statistics = observe_question(tiny_pipeline, golden, "x2t_image_1", recorded)
    compare(statistics, recorded, 3)
    roles = statistics.tokens["language_model.model.layers.0.self_attn.q_proj"]
    assert roles["x2t_image/answer"] == len(recorded["out.tokens"]) - 1
    assert roles["x2t_image/vit"] == recorded["vit.features"].shape[0]


def test_a_drawn_picture_is_counted_as_upstream_does(tiny_pipeline: Any, golden: Path) -> None:
    recorded = load_file(golden / "tasks" / "t2i_1" / "tensors.safetensors")
    if "act.language_model.model.layers.0.self_attn.q_proj.count" not in recorded:
        pytest.skip("this copy of the golden tensors has no activation statistics")
    statistics = Statistics()
    with torch.inference_mode(), Observer(tiny_pipeline.model, statistics) as observer:
        observer.task = "t2i"
        reader = drawing(tiny_pipeline, "A red cube on a blue table, soft light.", 96, 128)
        sample(recorded["noise"], reader.velocities, Sampling(num_steps=8))
    compare(statistics, recorded, 3)
    assert observer.timesteps["t2i"]["1.000"] == 2 * 48


def test_all_timesteps_count_alike_guided_or_not(tiny_pipeline: Any) -> None:
    statistics = Statistics()
    sampling = Sampling(num_steps=8)
    with torch.inference_mode(), Observer(tiny_pipeline.model, statistics) as observer:
        observer.task, observer.share = "t2i", stratified(sampling, 48, rows=20)
        reader = drawing(tiny_pipeline, "A ball.", 96, 128)
        sample(torch.randn(48, 48), reader.velocities, sampling)
    assert len(observer.timesteps["t2i"]) == 8
    assert set(observer.timesteps["t2i"].values()) == {20}
    gen = statistics.tokens["language_model.model.layers.1.mlp_moe_gen.down_proj"]
    assert gen == {"t2i/noisy": 8 * 20}


def test_hooks_are_gone_afterwards(tiny_pipeline: Any) -> None:
    statistics = Statistics()
    with Observer(tiny_pipeline.model, statistics):
        pass
    image = Image.new("RGB", (64, 64), "red")
    with torch.inference_mode():
        understanding = Understanding.of_images(tiny_pipeline, [image], "What?", resolution="image_256res")
        next(iter(understanding.steps(1)))
    assert statistics.moments == {}


def test_all_linears_of_both_experts_are_observed(tiny_world: Any) -> None:
    from core.calibration.record import coverage, load_record, too_few
    from core.lance.structure import lance_structure

    record = load_record(tiny_world.calibration)
    table = coverage(record.tokens, lance_structure(3).target_linears())
    assert len(table) == 42
    assert not too_few(table, 1)
    q = record.tokens["language_model.model.layers.0.self_attn.q_proj"]
    assert set(q) == {"x2t_image/text", "x2t_image/vit", "x2t_image/answer", "t2i/text"}
