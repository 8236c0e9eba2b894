"""Sensitivity of a causal LM, measured on running text, and widths chosen by it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UsageError
from core.quantization import job, sensitivity_job
from core.store import Store

RECIPE = """
name = "mixed-text"
[format]
bits = 4
group = 32
symmetric = false
[mixed]
bits = [3, 4, 6]
budget = 5.25
[calibration]
min_tokens = 64
[[steps]]
kind = "ranges"
"""


def test_widths_of_a_causal_lm_are_chosen_on_running_text(hf_world: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(RECIPE)
    text = tmp_path / "mine.txt"
    text.write_text("The lamp was lit before the guests came, and nobody spoke of the storm. " * 60)
    calibration = hf_world.calibration("llama")["path"]
    spec = {
        "checkpoint": str(hf_world.folder("llama")),
        "recipe": str(recipe),
        "calibration": calibration,
        "device": "cpu",
    }
    with Store.open(tmp_path / "runs.db") as store:
        lines: list[str] = []
        context: Any = SimpleNamespace(store=store, job_id=None, data_dir=store.data_dir)
        context.progress, context.log = (lambda *args: None), lines.append
        done = sensitivity_job.run(spec | {"suites": [f"text:{text}"], "limit": 4}, context)
        found = json.loads(Path(done["path"]).read_text())
        assert [row["step"] for row in found["steps"]] == ["plain rounding", "+ ranges"]
        assert found["measured_on"]["suites"] == ["mine"]
        assert len(found["groups"]) == 8
        assert all(row["scores"]["kl"] > 0 and "velocity" not in row["scores"] for row in found["groups"])
        made = job.run(spec, context)
        assert 4.5 < made["bits_per_weight"] <= 5.25
        assert any(f"widths by {found['name']}" in line for line in lines)
        with pytest.raises(
            UsageError, match=r"demo-x2t: holds x2t_image samples; a causal LM is measured on text"
        ):
            sensitivity_job.run(spec | {"suites": ["demo-x2t"]}, context)
