"""Our recipes against the algorithm of the toolkit this project began from, by what the whole model says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from divergence import Reference, with_weights
from PIL import Image
from seed_algorithm import int4, nvfp4_without_global_scale, seed_weights

from core.calibration.record import STATISTICS_FILE
from core.calibration.statistics import StatisticsFile
from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.lance.structure import lance_structure
from core.quantization import job
from core.runtime import load_model


def test_on_the_tiny_model_every_best_recipe_beats_the_seed(
    tiny_world: Any, tiny_checkpoint: Path, tiny_pipeline: Any, context: Any
) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    questions = [
        SimpleNamespace(visuals=lambda: [image], question=text, instruction="Look.")
        for text in ("What is it?", "Which colour?", "How many are there?")
    ]
    reference = Reference(tiny_pipeline, questions, ["A red cube.", "A green ball."], limit=16)
    statistics = StatisticsFile(tiny_world.calibration / STATISTICS_FILE)
    for recipe, group, form, scored in (
        ("int4-best", 32, int4(32), int4(32, searching=True)),
        ("nvfp4-best", None, nvfp4_without_global_scale, None),
    ):
        spec = {"checkpoint": str(tiny_checkpoint), "recipe": recipe, "group": group, "device": "cpu"}
        done = job.run(spec | {"calibration": str(tiny_world.calibration)}, context)
        ours = load_model(Path(done["path"]), "cpu", torch.float32)
        source, groups = TensorSource.open(tiny_checkpoint), lance_structure(3).groups()
        seed = with_weights(tiny_checkpoint, seed_weights(source, statistics, groups, form, scored))
        assert float(reference.kl(ours).mean()) < float(reference.kl(seed).mean())
        assert reference.velocity_error(ours) < reference.velocity_error(seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "form", "scored", "bar"),
    [
        ("int4-best", int4(64), int4(64, searching=True), 0.35),
        ("int4-compact", int4(64), int4(64, searching=True), 1.0),
        ("nvfp4-best", nvfp4_without_global_scale, None, 0.5),
    ],
    ids=["int4-best", "int4-compact", "nvfp4-best"],
)
def test_on_the_embedded_lance_the_bars_hold(
    recipe: str, form: Any, scored: Any, bar: float, context: Any
) -> None:
    from core.calibration import job as calibrate
    from core.calibration.samples import drawn

    base = {"checkpoint": str(CHECKPOINT), "device": "cpu"}
    calibration = Path(calibrate.run(base | {"samples": 42, "name": "bars"}, context)["path"])
    plain = load_model(CHECKPOINT, "cpu", torch.float32)
    questions = drawn("x2t_image", 120, 7)
    reference = Reference(plain, questions, [sample.prompt for sample in drawn("t2i", 8, 7)])
    source, statistics = TensorSource.open(CHECKPOINT), StatisticsFile(calibration / STATISTICS_FILE)
    done = job.run(base | {"recipe": recipe, "calibration": str(calibration)}, context)
    ours = load_model(Path(done["path"]), "cpu", torch.float32)
    seed = with_weights(
        CHECKPOINT, seed_weights(source, statistics, lance_structure(4).groups(), form, scored)
    )
    kl = [float(reference.kl(pipeline).mean()) for pipeline in (ours, seed)]
    velocity = [reference.velocity_error(pipeline) for pipeline in (ours, seed)]
    print(
        f"{recipe}: KL {kl[0]:.5f}, seed's {kl[1]:.5f}; velocity {velocity[0]:.4f}, seed's {velocity[1]:.4f}"
    )
    assert kl[0] <= bar * kl[1]
    assert velocity[0] < velocity[1]
