"""Refining variants of causal LMs: nearer to the original on text they never saw, and still read by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.calibration import job as calibrate
from core.calibration import texts
from core.evaluation.prose import SHIPPED, documents_of
from core.quantization import job
from core.refinement import objectives
from core.runtime.causal_lm import load_text_model

RECIPE = """
name = "{name}"
[format]
bits = 3
group = 32
symmetric = false
[calibration]
min_tokens = 64
[[steps]]
kind = "ranges"
"""


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_refined_variants_say_more_of_what_the_original_says(
    kind: str, hf_world: Any, tmp_path: Path
) -> None:
    folders = []
    many = {"checkpoint": str(hf_world.folder(kind)), "samples": 12, "device": "cpu", "name": f"many-{kind}"}
    calibration = calibrate.run(many, hf_world.context)["path"]
    for name, section in (("plain", ""), ("refined", "[refine]\nsteps = 16\nbatch = 2\nrate = 0.01\n")):
        path = tmp_path / f"{name}.toml"
        path.write_text(RECIPE.format(name=name) + section)
        spec = {"checkpoint": str(hf_world.folder(kind)), "recipe": str(path), "device": "cpu"}
        done = job.run(spec | {"calibration": calibration, "output": str(tmp_path / name)}, hf_world.context)
        folders.append(Path(done["path"]))
    assert [(one["expert"], one["kept"]) for one in done["refine"]] == [("und", True)]
    original = load_text_model(hf_world.folder(kind), "cpu", torch.float32)
    unseen = texts.pieces(original, [documents_of(SHIPPED)[0][:3000]], 3, 0)
    objective = objectives.of_text(original, unseen, lambda done, total: None)
    kl = []
    with torch.no_grad():
        for folder in folders:
            model = load_text_model(folder, "cpu", torch.float32)
            kl.append(float(torch.stack(objective.losses(model, range(len(unseen)))).mean()))
    assert kl[1] < 0.9 * kl[0]


def test_transformers_gives_the_logits_of_our_runtime(hf_world: Any, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    path = tmp_path / "refined.toml"
    path.write_text(RECIPE.format(name="refined") + "[refine]\nsteps = 2\nbatch = 1\n")
    spec = {"checkpoint": str(hf_world.folder("qwen2")), "recipe": str(path), "device": "cpu"}
    calibration = hf_world.calibration("qwen2")["calibration"]
    done = job.run(spec | {"calibration": calibration, "output": str(tmp_path / "out")}, hf_world.context)
    assert done["refine"][0]["kept"]
    ours = load_text_model(tmp_path / "out", "cpu", torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens, _ = ours.encode("It was a bright cold day, and the clocks were striking.")
    with torch.inference_mode():
        wanted = theirs(torch.tensor([tokens])).logits[0, :-1]
    assert float((ours.logits(tokens, 1) - wanted).abs().max()) < 1e-3
