"""What refining gains on models that were trained, on samples that neither calibration nor refinement saw."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.calibration import job as calibrate
from core.calibration import texts
from core.calibration.samples import drawn
from core.checkpoints.describe import describe
from core.demo import CHECKPOINT
from core.evaluation import statistics
from core.evaluation.prose import SHIPPED, documents_of
from core.evaluation.samples import Settings
from core.quantization import job
from core.quantization import recipe as recipes
from core.refinement import objectives
from core.refinement.objectives import LanceObjective, TextObjective
from core.runtime import load_model
from core.runtime.causal_lm import load_text_model

sys.path.append(str(Path(__file__).parents[1] / "huggingface"))

SETTINGS: dict[str, tuple[int, int | str]] = {
    "int4 g64": (4, 64),
    "int4 g128": (4, 128),
    "int4 channel": (4, "channel"),
    "int3 g128": (3, 128),
}


def recipe(folder: Path, setting: str, refined: bool) -> str:
    """``int4-refined`` or ``int4-best`` in another format."""
    bits, group = SETTINGS[setting]
    text = recipes.load("int4-refined" if refined else "int4-best").with_group(group).text  # type: ignore[arg-type]
    path = folder / f"{setting.replace(' ', '-')}-{'refined' if refined else 'best'}.toml"
    path.write_text(text.replace("bits = 4", f"bits = {bits}").replace('name = "int4', f'name = "int{bits}'))
    return str(path)


@torch.no_grad()
def asked(objective: LanceObjective | TextObjective, model: Any) -> dict[str, list[float]]:
    """KL of each answer or text, and relative error of each velocity."""
    found: dict[str, list[float]] = {}
    for number, item in enumerate(objective.items):
        loss = float(objective.losses(model, [number])[0])
        found.setdefault(item.part, []).append(loss if item.part == "kl" else loss**0.5)
    return found


def compared(label: str, before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, float]:
    """The share that is left of each mean; prints both with their standard errors, and that of the difference."""
    left = {}
    for part, values in before.items():
        was, now = statistics.mean(values), statistics.mean(after[part])
        change = statistics.mean([b - a for a, b in zip(values, after[part], strict=True)])
        left[part] = now.value / was.value
        print(
            f"{label}: {part} {was.value:.3e} ± {was.error:.1e} -> {now.value:.3e} ± {now.error:.1e}, "
            f"difference {change.value:+.2e} ± {change.error:.1e}, {left[part]:.3f} of it"
        )
    return left


def made(context: Any, folder: Path, setting: str, calibration: Path, place: Path) -> list[Path]:
    """The variants of a setting, plain and refined."""
    found = []
    for refined in (False, True):
        spec = {"checkpoint": str(folder), "calibration": str(calibration), "device": "cpu"}
        done = job.run(spec | {"recipe": recipe(place, setting, refined)}, context)
        found.append(Path(done["path"]))
    print(done["refine"], f"{done['seconds']:.0f} s")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_trained_decoder_says_more_of_what_bf16_says(setting: str, context: Any, tmp_path: Path) -> None:
    import trained_decoder

    folder = trained_decoder.write(tmp_path / "trained", steps=300)
    calibration = Path(calibrate.run({"checkpoint": str(folder), "device": "cpu"}, context)["path"])
    original = load_text_model(folder, "cpu", torch.float32)
    unseen = texts.pieces(original, [documents_of(SHIPPED)[0]], 32, 7)
    objective = objectives.of_text(original, unseen, lambda done, total: None)
    values = [
        asked(objective, load_text_model(variant, "cpu", torch.float32))
        for variant in made(context, folder, setting, calibration, tmp_path)
    ]
    assert compared(f"trained decoder, {setting}", *values)["kl"] < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_embedded_lance_draws_nearer_to_bf16(setting: str, context: Any, tmp_path: Path) -> None:
    base = {"checkpoint": str(CHECKPOINT), "device": "cpu", "samples": 42}
    calibration = Path(calibrate.run(base, context)["path"])
    original = load_model(CHECKPOINT, "cpu", torch.float32)
    settings = Settings.combine(describe(CHECKPOINT).defaults)
    unseen = [*drawn("x2t_image", 63, 7), *drawn("t2i", 12, 7)]
    objective = of_both(original, unseen, settings)
    values = [
        asked(objective, load_model(variant, "cpu", torch.float32))
        for variant in made(context, CHECKPOINT, setting, calibration, tmp_path)
    ]
    left = compared(f"embedded Lance, {setting}", *values)
    # Its answers are at the floor of what can be told apart.
    assert left["velocity"] < 0.99


def of_both(pipeline: Any, unseen: Sequence[Any], settings: Settings) -> LanceObjective:
    by_task = dict.fromkeys(("x2t_image", "t2i"), settings)
    return objectives.of_lance(pipeline, unseen, by_task, lambda done, total: None)
