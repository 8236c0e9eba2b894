"""Variants of the embedded checkpoint on a CUDA device, kernels against reference: ``pytest -m gpu tests/core``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from core.demo import CHECKPOINT
from core.lance.generation import Understanding, drawing, start_noise
from core.quantization import job
from core.runtime import enforcement, load_model
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from core.store import Store
from kernels.fp8 import multiply_reference, quantize_rows_reference

pytestmark = pytest.mark.gpu
OUTER = (
    "[head]\nbits = 8\ngroup = 64\nsymmetric = true\n[embedding]\nbits = 4\ngroup = 32\nsymmetric = true\n"
)
RECIPES = {
    "int4": 'name = "int4"\n[format]\nbits = 4\ngroup = 64\nsymmetric = false\n',
    "int4-compact": 'name = "small"\n[format]\nbits = 4\ngroup = 32\nsymmetric = true\n' + OUTER,
    "int4-fp8": 'name = "pictures"\n[format]\nbits = 4\ngroup = 64\nsymmetric = false\n[gen]\ntype = "fp8"\n',
    "nvfp4": 'name = "float"\n[format]\ntype = "nvfp4"\n',
}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def variant(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("variant")
    (place / "recipe.toml").write_text(RECIPES[request.param])
    spec = {"checkpoint": str(CHECKPOINT), "recipe": str(place / "recipe.toml"), "device": "cpu"}
    with Store.open(place / "runs.db") as store:
        context: Any = SimpleNamespace(store=store, job_id=None, data_dir=place, log=print)
        context.progress = lambda *_, **__: None
        return Path(job.run(spec | {"output": str(place / "variant")}, context)["path"])


@pytest.fixture(scope="module")
def pipelines(variant: Path) -> tuple[Any, Any, Any]:
    """On the kernels; on the reference at the same precision; on the reference in float32."""
    plain, exact = (load_model(variant, "cpu", d, observed=True) for d in (torch.bfloat16, torch.float32))
    for pipeline in (plain, exact):
        for module in pipeline.model.modules():
            if isinstance(module, QuantizedLinear):
                module.hold(pipeline.dtype)
            if isinstance(module, Fp8Linear):
                module.forward = partial(reference, module)  # type: ignore[method-assign]
        question(pipeline)  # the vision tower is read when it is first needed
        pipeline.model.to("cuda")
    return load_model(variant, "cuda", torch.bfloat16), plain, exact


def reference(linear: Fp8Linear, x: torch.Tensor) -> torch.Tensor:
    codes, scale = quantize_rows_reference(x.reshape(-1, x.shape[-1]))
    found = multiply_reference(codes, scale, linear.parts, linear.bias, x.dtype)
    return found.view(*x.shape[:-1], linear.out_features)


def question(pipeline: Any) -> Understanding:
    image = Image.linear_gradient("L").convert("RGB")
    return Understanding.of_images(pipeline, [image], "Which colour is the largest shape?")


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    finite = wanted.isfinite()
    return float((found.float() - wanted)[finite].norm() / wanted[finite].norm())


@torch.inference_mode()
def test_logits_are_as_close_to_float32_as_the_references(pipelines: tuple[Any, Any, Any]) -> None:
    tokens = [token for token, _ in question(pipelines[2]).steps(12)]
    ours, plain, exact = (question(p).logits(tokens).float() for p in pipelines)
    assert distance(ours, exact) < 1.5 * distance(plain, exact) + 1e-3


@torch.inference_mode()
def test_decoded_tokens_are_the_references_but_for_ties(pipelines: tuple[Any, Any, Any]) -> None:
    """Through the graphs, twice: the second question finds the cache used and the graph captured."""
    ours, plain, _ = pipelines
    for _ in range(2):
        steps = list(question(ours).steps(16))
        tokens = [token for token, _ in steps]
        scored = question(plain).logits(tokens).float()
        noise = 0.02 * float(scored[scored.isfinite()].std()) + 0.05
        for row, token in zip(scored, tokens, strict=True):
            assert float(row.max() - row[token]) < 4 * noise
        assert distance(torch.stack([logits for _, logits in steps]), scored) < 0.05


@torch.inference_mode()
def test_velocities(pipelines: tuple[Any, Any, Any]) -> None:
    noise = start_noise(36, 3).cuda()
    ours, plain, exact = pipelines
    batched = ours.engine.velocities(drawing(ours, "A red circle.", 96, 96))
    for time in (1.0, 0.7, 0.4):
        found = batched(noise, time, True)
        theirs, best = (
            drawing(p, "A red circle.", 96, 96).velocities(noise, time, True) for p in (plain, exact)
        )
        for mine, other, wanted in zip(found, theirs, best, strict=True):
            assert distance(mine, wanted) < 1.5 * distance(other, wanted) + 1e-3


def test_the_record_says_so_and_memory_is_the_files(variant: Path, pipelines: tuple[Any, Any, Any]) -> None:
    found = enforcement(pipelines[0])
    assert found.kernel_path == ("scaled-mm + triton" if "fp8" in found.scheme else "triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    pipeline = load_model(variant, "cuda", torch.bfloat16)
    held = torch.cuda.memory_allocated() - before
    assert pipeline.engine is not None
    files = sum(path.stat().st_size for path in variant.rglob("*.safetensors"))
    assert held < 1.2 * files + 2**21
