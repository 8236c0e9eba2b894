"""Sensitivity: what is measured in the model is what a variant does, and widths are chosen by it within the budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.calibration import job as calibrate
from core.calibration.samples import drawn
from core.checkpoints.describe import describe
from core.demo import CHECKPOINT
from core.errors import UsageError
from core.evaluation import divergence, statistics, suites
from core.evaluation.samples import Settings
from core.quantization import job, sensitivity_job, sensitivity_results
from core.quantization import recipe as recipes
from core.quantization.sensitivity_report import markdown, tables
from core.runtime import load_model
from core.runtime.linear import QuantizedLinear

HEAD = 'name = "mine"\n[format]\nbits = 4\ngroup = 32\nsymmetric = false\n[calibration]\nmin_tokens = 1\n'
STEPS = '[[steps]]\nkind = "awq"\nexponents = 1\n[[steps]]\nkind = "ranges"\n'


@pytest.fixture(scope="module")
def world(
    tiny_world: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, golden: Path
) -> Iterator[Any]:
    """A mixed recipe for the tiny model, measured on a question and a prompt."""
    folder = tmp_path_factory.mktemp("sensitivity")
    sample = {
        "interleave_array": [str(golden / "media" / "img1.png"), ["Look.", "What is it?", "yes"]],
        "element_dtype_array": ["image", "text"],
        "istarget_in_interleave": [0, 1],
    }
    (folder / "questions.json").write_text(json.dumps({"1": sample}))
    (folder / "prompts.json").write_text(json.dumps({"000000.png": "A red cube on a blue table."}))
    (folder / "mixed.toml").write_text(f"{HEAD}[mixed]\nbits = [3, 4, 6]\nbudget = 5.25\n{STEPS}")
    names = [str(folder / name) for name in ("questions.json", "prompts.json")]
    spec = {
        "checkpoint": str(tiny_checkpoint),
        "calibration": str(tiny_world.calibration),
        "device": "cpu",
        "suites": names,
    }
    done = sensitivity_job.run(spec | {"recipe": str(folder / "mixed.toml")}, tiny_world.context)
    found = json.loads(Path(done["path"]).read_text())
    yield SimpleNamespace(folder=folder, spec=spec, names=names, found=found, context=tiny_world.context)


def test_every_linear_layer_and_group_is_measured(world: Any) -> None:
    found = world.found
    assert [row["step"] for row in found["steps"]] == ["plain rounding", "+ ranges", "+ awq"]
    assert all(row["scores"]["kl"] > 0 and row["scores"]["velocity"] > 0 for row in found["steps"])
    assert [(row["layer"], row["expert"]) for row in found["layers"]] == [
        (layer, expert) for layer in range(3) for expert in ("und", "gen")
    ]
    assert len(found["linears"]) == 42
    assert all(10 < row["weight_sqnr"] < 40 and 10 < row["output_sqnr"] < 60 for row in found["linears"])
    assert len(found["groups"]) == 24
    for row in found["groups"]:
        losses = [row["losses"][bits] for bits in ("3", "4", "6")]
        assert losses == sorted(losses, reverse=True)
        # The generation expert has no part in an answer, nor what follows attention in the other's last layer in a
        # velocity: that is not known, and is not nothing.
        parts = row["group"].split(".")
        assert (row["scores"]["kl"] is None) == (row["powers"]["kl"] is None) == (parts[2] == "gen")
        unseen = parts[1:3] == ["2", "und"] and parts[3] != "qkv"
        assert (row["scores"]["velocity"] is None) == (row["powers"]["velocity"] is None) == unseen


def run_as(pipeline: Any, folder: Path) -> None:
    """Give a plain model the weights that a variant runs with."""
    variant = load_model(folder, "cpu", torch.float32)
    with torch.no_grad():
        for name, module in variant.model.named_modules():
            if isinstance(module, QuantizedLinear):
                pipeline.model.get_parameter(f"{name}.weight").copy_(module.weight())
        for name, parameter in variant.model.language_model.named_parameters(prefix="language_model"):
            pipeline.model.get_parameter(name).copy_(parameter)


def test_a_step_measures_what_the_variant_it_makes_does(
    world: Any, tiny_checkpoint: Path, context: Any
) -> None:
    path = world.folder / "plain.toml"
    path.write_text(HEAD + STEPS)
    done = job.run(world.spec | {"recipe": str(path)}, context)
    samples = [sample for name in world.names for sample in suites.load(name).samples]
    settings = Settings.combine(describe(tiny_checkpoint).defaults)
    pipeline = load_model(tiny_checkpoint, "cpu", torch.float32, observed=True)
    measured = divergence.of_lance(pipeline, samples, settings)
    run_as(pipeline, Path(done["path"]))
    last = world.found["steps"][-1]["scores"]
    for one in measured:
        assert divergence.mean(one).value == pytest.approx(last[one.score], rel=1e-4)


def test_a_step_counts_what_rounding_activations_costs(
    world: Any, tiny_checkpoint: Path, context: Any
) -> None:
    path = world.folder / "fp8.toml"
    path.write_text(f'{HEAD}[gen]\ntype = "fp8"\n{STEPS}')
    spec = world.spec | {"recipe": str(path), "suites": world.names[1:]}
    found = json.loads(Path(sensitivity_job.run(spec, context)["path"]).read_text())
    variant = load_model(Path(job.run(spec, context)["path"]), "cpu", torch.float32, observed=True)
    pipeline = load_model(tiny_checkpoint, "cpu", torch.float32, observed=True)
    samples = suites.load(world.names[1]).samples
    (measured,) = divergence.of_lance(pipeline, samples, Settings.combine(describe(tiny_checkpoint).defaults))
    pipeline.model.language_model = variant.model.language_model
    last = found["steps"][-1]["scores"]["velocity"]
    assert divergence.mean(measured).value == pytest.approx(last, rel=0.01)


def test_the_report_has_every_linear(world: Any) -> None:
    text = markdown(world.found)
    assert "# Sensitivity of lance-tiny to mine" in text
    assert text.count("_proj") >= 42
    assert " dB |" in text


def test_a_mixed_recipe_chooses_within_its_budget_and_says_what(world: Any) -> None:
    spec = world.spec | {"recipe": str(world.folder / "mixed.toml"), "suites": None}
    predicted = job.run(spec | {"dry_run": True}, world.context)
    assert predicted["plan"]["bits_per_weight"] <= 5.25
    done = job.run(spec, world.context)
    assert 4.5 < done["bits_per_weight"] <= 5.25
    # It went by the result that was there.
    assert any(f"widths by {world.found['name']}: 3 bits: " in line for line in world.context.lines)
    folder = Path(done["path"])
    kept = recipes.load(str(folder / "recipe.toml"))
    chosen = {width.pattern: width.bits for width in kept.widths}
    assert len(chosen) == 24
    assert len(set(chosen.values())) > 1
    records = json.loads((folder / "lance_workbench.json").read_text())["linears"]
    assert all(row["scheme"] == f"int{chosen[row['group']]} asym g32" for row in records)
    # The recipe that lies with the variant makes it again, without any choosing.
    again = job.run(
        spec | {"recipe": str(folder / "recipe.toml"), "output": str(world.folder / "again")}, world.context
    )
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert all((Path(again["path"]) / name).read_bytes() == (folder / name).read_bytes() for name in files)


def test_groups_that_no_sample_reaches_keep_the_recipes_width(world: Any, context: Any) -> None:
    spec = world.spec | {"recipe": str(world.folder / "mixed.toml"), "suites": world.names[:1]}
    done = sensitivity_job.run(spec, context)
    assert any("no sample reaches 12 of 24 groups" in line for line in context.lines)
    found = json.loads(Path(done["path"]).read_text())
    (title, _, rows, _) = tables(found)[2]
    assert title.endswith("(—: no sample reaches it)")
    assert all((row[2:] == ["—", "—"]) == (".gen." in row[0]) for row in rows)
    assert rows[-1][-1] == "—"
    made = job.run(spec, context)
    widths = recipes.load(str(Path(made["path"]) / "recipe.toml")).widths
    assert {width.bits for width in widths if ".gen." in width.pattern} == {4}
    assert {width.bits for width in widths if ".und." in width.pattern} != {4}
    # A result that an earlier version wrote is read alike.
    for row in found["groups"]:
        if row["powers"]["kl"] is None:
            row["powers"]["kl"] = row["scores"]["kl"] = 0.0
    Path(done["path"]).write_text(json.dumps(found))
    again = sensitivity_results.read(Path(done["path"]))
    assert tables(again)[2][2] == rows


def test_what_cannot_be_chosen_is_said(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "tight.toml"
    path.write_text(f"{HEAD}[mixed]\nbits = [3, 4]\nbudget = 2.5\n{STEPS}")
    with pytest.raises(
        UsageError, match=r"recipe mine: the narrowest widths take [\d,]+ bytes, the budget is"
    ):
        job.run(world.spec | {"recipe": str(path)}, world.context)
    path.write_text(f"{HEAD}[mixed]\nbits = [3, 4]\nbudget = 5.0\n{STEPS}")
    with pytest.raises(UsageError, match="lance-tiny: measure it on samples of its own kind: give --suite"):
        job.run(world.spec | {"recipe": str(path), "output": str(tmp_path / "out")}, world.context)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="recipe mine looks at activations: give it a calibration"):
        sensitivity_job.run(world.spec | {"recipe": str(path), "calibration": None}, world.context)


@pytest.mark.slow
def test_on_the_embedded_lance_mixed_widths_beat_four_bits_in_the_same_bytes(context: Any) -> None:
    base = {"checkpoint": str(CHECKPOINT), "device": "cpu"}
    calibration = calibrate.run(base | {"samples": 42, "name": "mixed"}, context)["path"]
    pipeline = load_model(CHECKPOINT, "cpu", torch.float32)
    settings = Settings.combine(describe(CHECKPOINT).defaults)
    samples = [*drawn("x2t_image", 63, 7), *drawn("t2i", 6, 7)]
    measured = divergence.of_lance(pipeline, samples, settings)
    powers, sizes = {}, {}
    for recipe in ("int4-best", "mixed"):
        done = job.run(base | {"recipe": recipe, "calibration": calibration}, context)
        sizes[recipe] = done["size_bytes"]
        run_as(pipeline, Path(done["path"]))
        values = {one.score: one.measure() for one in measured}
        powers[recipe] = {score: divergence.power(score, found) for score, found in values.items()}
        print(recipe, sizes[recipe], {score: statistics.mean(found) for score, found in values.items()})
    assert sizes["mixed"] <= sizes["int4-best"]
    assert powers["mixed"]["velocity"] < powers["int4-best"]["velocity"]
    # Both experts together, each against four bits throughout.
    assert sum(powers["mixed"][score] / powers["int4-best"][score] for score in powers["mixed"]) < 2
