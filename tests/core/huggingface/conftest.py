"""A decoder of each kind on disk, calibrated on the shipped text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_decoders

from core.store import Store

RECIPE = """
name = "{name}"
[format]
bits = {bits}
group = 32
symmetric = false
[calibration]
min_tokens = 64
[[steps]]
kind = "values"
exponents = 2
[[steps]]
kind = "awq"
exponents = 2
"""
SEARCHED = """[[steps]]
kind = "ranges"
[[steps]]
kind = "gptq"
"""


@pytest.fixture(scope="session")
def hf_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """``folder(kind)``, ``calibration(kind)`` and ``variant(kind, recipe)``, each made once.

    Of ``recipes``, ``folds`` has eight bits and every fold, ``all`` four bits and every step, with few candidates.
    """
    from core.calibration import job as calibrate
    from core.quantization import job as quantize

    place = tmp_path_factory.mktemp("causal")
    store = Store.open(place / "runs.db")
    context: Any = SimpleNamespace(store=store, job_id=None, data_dir=store.data_dir, lines=[])
    context.progress, context.log = (lambda *args: None), context.lines.append
    made: dict[tuple[str, ...], Any] = {}

    def folder(kind: str) -> Path:
        if ("folder", kind) not in made:
            made["folder", kind] = tiny_decoders.write(place / kind, kind)
        return made["folder", kind]

    def calibration(kind: str) -> dict[str, Any]:
        if ("calibration", kind) not in made:
            spec = {"checkpoint": str(folder(kind)), "samples": 4, "device": "cpu", "dtype": "float32"}
            made["calibration", kind] = calibrate.run(spec, context)
        return made["calibration", kind]

    def recipe(name: str, bits: int, steps: str = "") -> str:
        path = place / f"{name}.toml"
        path.write_text(RECIPE.format(name=name, bits=bits) + steps)
        return str(path)

    def variant(kind: str, recipe: str, group: int | None = None) -> dict[str, Any]:
        if (kind, recipe) not in made:
            spec = {"checkpoint": str(folder(kind)), "recipe": recipe, "group": group, "device": "cpu"}
            made[kind, recipe] = quantize.run(
                spec | {"calibration": calibration(kind)["calibration"]}, context
            )
        return made[kind, recipe]

    recipes = {"folds": recipe("folds", 8), "all": recipe("all", 4, SEARCHED)}
    yield SimpleNamespace(
        context=context, folder=folder, calibration=calibration, variant=variant, recipes=recipes
    )
    store.close()
