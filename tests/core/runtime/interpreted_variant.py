"""A loaded variant on the kernels, by Triton's interpreter: run by test_variant_interpreted, which sets it up.

The model computes in float16: the interpreter's bfloat16 arithmetic is wrong.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from core.lance.generation import Understanding, drawing, start_noise
from core.quantization import job
from core.runtime import enforcement, load_model, stack
from core.runtime.engine import Engine
from core.runtime.linear import QuantizedLinear
from core.runtime.projections import FusedQuantized
from core.store import Store
from kernels import row

RECIPES = {
    "int4": """
name = "int4"
[format]
bits = 4
group = 32
symmetric = false
[head]
bits = 8
group = 64
symmetric = true
[embedding]
bits = 4
group = 32
symmetric = true
""",
    "nvfp4": """
name = "float"
[format]
type = "nvfp4"
""",
}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def pipelines(
    request: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """A variant on the reference in float32 and on the kernels in float16."""
    place = tmp_path_factory.mktemp("variant")
    (place / "recipe.toml").write_text(RECIPES[request.param])
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(place / "recipe.toml"), "device": "cpu"}
    with Store.open(place / "runs.db") as store:
        context: Any = SimpleNamespace(store=store, job_id=None, data_dir=place, log=print)
        context.progress = lambda *_, **__: None
        done = job.run(spec | {"output": str(place / "variant")}, context)
    wanted = load_model(Path(done["path"]), "cpu", torch.float32, observed=True)
    ours = load_model(Path(done["path"]), "cpu", torch.float16, observed=True)
    # The modules fill caches with the weights they hold: a minute of interpreting less. The engine runs kernels.
    ours.engine = Engine(ours.model)
    for module in ours.model.modules():
        if isinstance(module, QuantizedLinear):
            module.lay_out()
    head = ours.model.language_model.lm_head
    if isinstance(head, QuantizedLinear):
        head.held = None
    return ours, wanted


def questions(pipeline: Any) -> Understanding:
    return Understanding.of_images(pipeline, [Image.linear_gradient("L").convert("RGB")], "What is it?")


@pytest.mark.parametrize("pipelines", ["int4"], indirect=True)
@torch.inference_mode()
def test_decoding(pipelines: tuple[Any, Any]) -> None:
    ours, wanted = pipelines
    (mine,), (theirs,) = (list(questions(p).steps(1)) for p in (ours, wanted))
    assert mine[0] == theirs[0]
    finite = theirs[1].isfinite()
    assert (mine[1][finite].float() - theirs[1][finite]).norm() < 5e-3 * theirs[1][finite].norm()


@pytest.mark.parametrize("pipelines", ["int4"], indirect=True)
@torch.inference_mode()
def test_decoding_with_norms_and_sums_inside_the_products(
    pipelines: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of it: here each product still does its norm or sum in a kernel beside it."""
    ours, wanted = pipelines
    for name in ("norms", "adds"):
        monkeypatch.setattr(stack, name, lambda *_: True)
    rows = [stack.RowLayer.of(und, ours.engine.stack.eps) for und, _ in ours.engine.stack.layers]
    monkeypatch.setattr(ours.engine.stack, "row_layers", rows)
    added = []

    def add_to(self: FusedQuantized, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        added.append(self)
        return row.add_linear(x, self.weight, self.bias, residual)

    monkeypatch.setattr(FusedQuantized, "add_to", add_to)
    (mine,), (theirs,) = (list(questions(p).steps(1)) for p in (ours, wanted))
    assert added and len(added) % (2 * len(rows)) == 0
    assert mine[0] == theirs[0]
    finite = theirs[1].isfinite()
    assert (mine[1][finite].float() - theirs[1][finite]).norm() < 5e-3 * theirs[1][finite].norm()


@pytest.mark.parametrize("pipelines", ["nvfp4"], indirect=True)
@torch.inference_mode()
def test_generating_and_understanding_experts_in_one_pass(pipelines: tuple[Any, Any]) -> None:
    ours, wanted = pipelines
    noise = start_noise(4, 3)
    assert ours.engine is not None
    batched = ours.engine.velocities(drawing(ours, "A cube.", 32, 32))
    reader = drawing(wanted, "A cube.", 32, 32)
    mine, _ = batched(noise, 0.9, False)
    theirs, _ = reader.velocities(noise, 0.9, False)
    assert (mine.float() - theirs).norm() < 1e-2 * theirs.norm()


def test_linears_are_fused_and_nothing_is_held_twice(pipelines: tuple[Any, Any]) -> None:
    ours, _ = pipelines
    layer = ours.model.get_submodule("language_model.model.layers.1.self_attn")
    shared = {id(getattr(layer, f"{name}_proj_moe_gen").laid_out.weight) for name in "qkv"}
    assert len(shared) == 1
    modules = [m for m in ours.model.modules() if isinstance(m, QuantizedLinear)]
    four = [m for m in modules if m.scheme.bits == 4]
    assert len(four) == 42 and all(m.laid_out is not None and m.weight_packed is None for m in four)
    und, gen = ours.engine.stack.layers[0]
    for expert in (und, gen):
        assert all(
            isinstance(part, FusedQuantized) for part in (expert.qkv, expert.o, expert.gate_up, expert.down)
        )


def test_the_record_says_what_runs_and_what_it_holds(pipelines: tuple[Any, Any]) -> None:
    ours, wanted = pipelines
    found = enforcement(ours)
    assert found.kernel_path == "triton" and found.swapped == 42
    assert enforcement(wanted).kernel_path == "torch-reference:cpu:held"
    assert found.bytes_stored == enforcement(wanted).bytes_stored


def test_the_weight_that_runs_is_the_stored_one(pipelines: tuple[Any, Any]) -> None:
    ours, wanted = pipelines
    for name, module in ours.model.named_modules():
        if isinstance(module, QuantizedLinear):
            theirs = wanted.model.get_submodule(name).weight().float()
            assert torch.allclose(module.weight().float(), theirs, rtol=1e-6)
            if name.endswith("layers.2.self_attn.k_proj_moe_gen"):
                module.held = None
                x = torch.eye(64).half()[:8]
                bias = torch.zeros(module.out_features) if module.bias is None else module.bias.float()
                assert torch.allclose(module(x).float(), theirs.t()[:8] + bias, rtol=1e-3, atol=1e-5)
