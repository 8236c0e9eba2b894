"""Causal LMs on the command line: added, looked at, verified, and refused where only a Lance will do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_decoders
from safetensors.torch import load_file, save_file

from workbench.cli.main import run_command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["--db", str(tmp_path / "runs.db"), *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_folder_is_added_shown_listed_and_verified(run: Run, tmp_path: Path) -> None:
    folder = tiny_decoders.write(tmp_path / "my-qwen", "qwen2", shards="60KB")
    code, out, err = run("checkpoints", "add", folder, "--json")
    assert code == 0, err
    words = "2 layers, one expert; biases on q, k, v; head tied to the embedding"
    added = json.loads(out)
    assert (added["name"], added["family"], added["structure"]) == ("my-qwen", "huggingface", words)
    shown = json.loads(run("checkpoints", "show", "my-qwen", "--json")[1])
    assert (shown["family"], shown["structure"], shown["missing"]) == ("huggingface", words, [])
    assert any(row["name"] == "my-qwen" for row in json.loads(run("checkpoints", "list", "--json")[1]))
    assert run("checkpoints", "verify", "my-qwen")[0] == 0


def test_a_folder_of_another_structure_is_not_added(run: Run, tmp_path: Path) -> None:
    assert run("checkpoints", "add", tiny_decoders.write(tmp_path / "sound", "llama"))[0] == 0
    folder = tiny_decoders.write(tmp_path / "odd", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.router.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, out, err = run("checkpoints", "add", folder)
    assert (code, out) == (1, "") and "model.layers.1 has no mlp.up_proj.weight" in err
    shown = json.loads(run("checkpoints", "show", folder, "--json")[1])
    assert "has no mlp.up_proj.weight" in shown["structure"]
    assert "no such folder" in run("checkpoints", "add", tmp_path / "nowhere")[2]


def test_a_causal_lm_draws_nothing(run: Run, tmp_path: Path) -> None:
    assert run("checkpoints", "add", tiny_decoders.write(tmp_path / "words-only", "llama"))[0] == 0
    asked = ("--prompt", "a cat", "--out", tmp_path / "cat.png", "--checkpoint", "words-only")
    code, out, err = run("generate", "--task", "t2i", *asked)
    assert (code, out) == (2, "") and "words-only: is no Lance" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "llm", "--suite", "demo-x2t"), "is no Lance and is evaluated on running text"),
        (
            ("calibrations", "run", "llm", "--tasks", "t2i"),
            "is no Lance and is calibrated on text, not on t2i",
        ),
        (
            ("calibrations", "run", "llm", "--suite", "a.txt", "--suite", "b.txt"),
            "give one file of texts at most",
        ),
        (
            ("variants", "quantize", "llm"),
            "recipe int4-awq looks at activations: give it a calibration of llm",
        ),
        (("variants", "quantize", "llm", "--recipe", "int4-minmax", "--group", "48"), "groups of 48; choose"),
        (("variants", "sensitivity", "llm", "--calibration", "none"), "none: no such calibration"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_job_is_queued(
    run: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    assert run("checkpoints", "add", tiny_decoders.write(tmp_path / "llm", "llama"))[0] == 0
    code, out, err = run(*words)
    assert (code, out) == (2, "") and message in err, err
    assert json.loads(run("jobs", "list", "--json")[1]) == []
