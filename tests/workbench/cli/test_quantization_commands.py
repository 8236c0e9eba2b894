"""Calibrations, variants and recipes from the command line, with real jobs on the tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from core.store import Store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["OMP_NUM_THREADS"] = "1"
    path = tmp_path_factory.mktemp("cli") / "runs.db"
    # What is refused makes no database, and only some tests here run a job.
    Store.open(path).close()
    return path


@pytest.fixture
def run(database: Path, capfd: Any) -> CommandLine:
    return CommandLine(database, capfd)


def test_from_samples_to_a_variant(run: CommandLine, tiny_checkpoint: Path, golden: Path) -> None:
    folder = run.database.parent
    question = {
        "interleave_array": [str(golden / "media" / "img1.png"), ["Look at it.", "What is it?", "red"]],
        "element_dtype_array": ["image", "text"],
        "istarget_in_interleave": [0, 1],
    }
    (folder / "questions.json").write_text(json.dumps({"0001": question}))
    (folder / "prompts.json").write_text(json.dumps({"000000.png": "A red cube."}))
    for name in ("questions", "prompts"):
        suite, options = str(folder / f"{name}.json"), ("--device", "cpu", "--dtype", "float32")
        done = run.json(
            "calibrations", "run", str(tiny_checkpoint), "--suite", suite, "--name", name, *options
        )
        assert done["state"] == "succeeded" and done["result"]["samples"] == 1
    merged = run.json("calibrations", "merge", "questions", "prompts", "--name", "both")
    assert merged["samples"] == 2

    shown = run.json("calibrations", "show", "both", "--min-tokens", "100")
    assert len(shown["coverage"]) == 42
    assert shown["too_few"] == []
    assert "too few" in run("calibrations", "show", "questions")
    assert [row["name"] for row in run.json("calibrations", "show")] == ["both", "prompts", "questions"]

    options = ("--calibration", "both", "--group", "32", "--device", "cpu")
    recipe = folder / "lenient.toml"
    recipe.write_text(run("recipes", "show", "int4-awq").replace("min_tokens = 256", "min_tokens = 100"))
    planned = run.json(
        "variants", "quantize", str(tiny_checkpoint), "--recipe", str(recipe), *options, "--dry-run"
    )
    assert run.json("variants", "list") == []
    done = run.json("variants", "quantize", str(tiny_checkpoint), "--recipe", str(recipe), *options)
    assert done["result"]["size_bytes"] == planned["result"]["plan"]["size_bytes"]
    (row,) = run.json("variants", "list")
    assert row["name"] == "lance-tiny_int4-awq-g32" and row["parent"] == "lance-tiny"
    record = run.json("variants", "show", row["name"])
    assert len(record["linears"]) == 42 and record["calibration"]["name"] == "both"
    assert "layers.2.mlp_moe_gen.down_proj" in run("variants", "show", row["path"])
    assert row["name"] in run("variants", "list")
    run("variants", "show", str(tiny_checkpoint), code=2)
    assert "a checkpoint, not a variant" in run.err


def test_recipes_are_listed_and_shown(run: CommandLine) -> None:
    listed = [recipe["name"] for recipe in run.json("recipes", "list")]
    assert listed == sorted(listed)
    assert {"int4-awq", "int4-best", "mixed", "nvfp4-best"} <= set(listed)
    assert "int4 asym g128" in run("recipes", "list")
    assert "int3/4/5/6 asym g64" in run("recipes", "list")
    assert run.json("recipes", "show", "int4-minmax")["steps"] == []
    best = run.json("recipes", "show", "nvfp4-best")
    assert best["format"]["type"] == "nvfp4"
    assert [step["kind"] for step in best["steps"]] == ["values", "awq", "ranges", "gptq"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('[widths]\n"layers.*.und.kqv" = 3\n', [], 'widths."layers.*.und.kqv" matches no group of any checkpoint'),
        ('[widths]\n"layers.2000.und.qkv" = 3\n', [], "layers.2000.und.qkv"),
        ('[widths]\n"layers.50.gen.down" = 3\n', ["--checkpoint", "lance-demo"], "matches no group of this checkpoint"),
        ('[widths]\n"*.q_proj" = 3\n', ["--checkpoint", "lance-demo"], "linears that share an input are fused"),
        ("", ["--checkpoint", "lance-demo"], "columns do not divide into groups of 48"),
    ],
)  # fmt: skip
def test_a_recipe_is_shown_only_if_its_groups_are_there(
    run: CommandLine, tmp_path: Path, text: str, options: list[str], message: str
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'name = "mine"\n[format]\nbits = 4\ngroup = 48\nsymmetric = false\n{text}')
    run("recipes", "show", str(recipe), *options, code=2)
    assert message in run.err
    recipe.write_text(
        'name = "mine"\n[format]\nbits = 4\ngroup = 64\nsymmetric = false\n[widths]\n"layers.[01].*.qkv" = 3\n'
    )
    assert "layers.[01]" in run("recipes", "show", str(recipe), *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["variants", "import", ".", "--checkpoint", "lance-demo"],
            "no variant of lance-quant: it has no awq_meta",
        ),
        (["recipes", "show", "int9"], "int9: no such recipe"),
        (["variants", "quantize", "lance-demo"], "int4-awq looks at activations: give it a calibration"),
        (["variants", "quantize", "nowhere", "--recipe", "int4-minmax"], "nowhere: no checkpoint or variant"),
        (["variants", "quantize", "lance-demo", "--calibration", "gone"], "gone: no such calibration"),
        (["calibrations", "run", "lance-demo", "--name", "a/b"], "name 'a/b'"),
        (["calibrations", "run", "lance-demo", "--name", ".."], "name '..': begins with a dot"),
        (["calibrations", "run", "lance-demo", "--samples", "9" * 20], "is not in the range 1<=x<=1000000"),
        (["calibrations", "run", "lance-demo", "--suite", "gone.json"], "gone.json: no such suite"),
        (["calibrations", "merge", "one", "--name", "x"], "one: no such calibration"),
    ],
)
def test_wrong_requests_are_refused_before_a_job_is_queued(
    run: CommandLine, arguments: list[str], message: str
) -> None:
    before = len(run.json("jobs", "list", "--all"))
    run(*arguments, code=2)
    assert message in run.err
    assert run.err.startswith("error: ") and run.err.count("\n") == 1
    assert len(run.json("jobs", "list", "--all")) == before


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_nothing_but_a_variant_is_ever_replaced(run: CommandLine, tmp_path: Path, there: str) -> None:
    mine = tmp_path / "mine"
    if there == "folder":
        mine.mkdir()
        (mine / "thesis.tex").write_text("years of work")
    elif there == "file":
        mine.write_text("years of work")
    else:
        (tmp_path / "work").write_text("years of work")
        mine.symlink_to(tmp_path / "work")
    before = len(run.json("jobs", "list", "--all"))
    run("variants", "quantize", "lance-demo", "--recipe", "int4-minmax", "--output", str(mine), code=2)
    assert "choose another --output" in run.err and run.err.count("\n") == 1
    assert len(run.json("jobs", "list", "--all")) == before
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"years of work"}
