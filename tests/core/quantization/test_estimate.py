"""Work counted from shapes: what a recipe adds, and that all of a model is the sum of its layers."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path

import torch

from core.checkpoints.layout import layout_of
from core.quantization import recipe as recipes
from core.quantization.estimate import Work, estimate, probe, work_of


def work(folder: Path, name: str) -> Work:
    layout, recipe = layout_of(folder), recipes.load(name)
    total = Work()
    for group in layout.structure.groups():
        total += work_of(group, layout, recipe)
    return total


def test_every_step_of_a_recipe_costs_what_it_does(tiny_checkpoint: Path) -> None:
    names = ("int4-minmax", "int4-fast", "int4-awq", "int4-best")
    minmax, fast, awq, best = (work(tiny_checkpoint, name) for name in names)
    layout = layout_of(tiny_checkpoint)
    weights = sum(math.prod(layout.shapes[f"{name}.weight"]) for name in layout.structure.target_linears())
    assert minmax == Work(plain=weights)
    assert fast.searched == 2 * weights and fast.factored == 0
    # Forty candidates but for o, which int4-awq leaves alone, and four roundings of everything.
    assert 30 * weights < awq.plain < 44 * weights and awq.searched == awq.compensated == 0
    assert best.compensated == weights and best.factored > 0 and best.searched > 15 * weights


def test_an_estimate_is_the_work_times_what_a_probe_says(tiny_checkpoint: Path) -> None:
    recipe = recipes.load("int4-best").with_group(32)
    seconds = probe(recipe.scheme, torch.device("cpu"))
    assert all(value > 0 for value in astuple(seconds))
    assert Work(plain=2.0, factored=3.0).at(Work(plain=10.0, factored=100.0)) == 320.0
    assert 0.0 < estimate(layout_of(tiny_checkpoint), recipe, torch.device("cpu")) < 3600
