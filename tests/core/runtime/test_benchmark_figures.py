"""Random weights in each format run and hold what the format takes; figures of a GPU keep their fields."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from core.demo import CHECKPOINT
from core.lance.config import LanceConfig
from core.runtime import bench_job, benchmark
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from core.runtime.random_weights import random_pipeline

CPU = torch.device("cpu")
CONFIG = LanceConfig.from_folder(CHECKPOINT)


@pytest.mark.parametrize("name", list(benchmark.FORMATS))
def test_each_format_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(benchmark.decode_rate, context=8, tokens=2, repeats=1)
    monkeypatch.setattr(benchmark, "decode_rate", short)
    figures = {item.name: item.value for item in benchmark.measure(CONFIG, name, CPU, side=32, num_steps=1)}
    assert list(figures) == ["repacking", "stored weights", "weights", "decode", "t2i"]
    assert all(value > 0 for value in figures.values())
    layer = CONFIG.num_layers * 2 * (
        CONFIG.hidden_size * (2 * CONFIG.num_heads + 2 * CONFIG.num_kv_heads) * CONFIG.head_dim
        + 3 * CONFIG.hidden_size * CONFIG.intermediate_size
    )  # fmt: skip
    plain = sum(p.nbytes for p in random_pipeline(CONFIG, CPU, torch.bfloat16).model.parameters()) / 1e9
    int4 = 4 + 20 / 64
    bits = {"bf16": 16.0, "nvfp4": 4.5, "int4-g64+fp8-gen": (int4 + 8) / 2}.get(name, int4)
    head = CONFIG.vocab_size * CONFIG.hidden_size * (2 - 1 - 2 / 64) if "head" in name else 0.0
    wanted = plain - layer * (16 - bits) / 8e9 - head / 1e9
    if "fp8" in name:
        heads = (CONFIG.num_heads + 2 * CONFIG.num_kv_heads) * CONFIG.head_dim
        rows = heads + 2 * CONFIG.hidden_size + 2 * CONFIG.intermediate_size
        wanted += 4 * CONFIG.num_layers * rows / 1e9  # a scale each
    assert figures["stored weights"] == pytest.approx(wanted, rel=1e-3)


def test_random_weights_have_the_spread_of_plain_ones() -> None:
    for scheme, head, gen in benchmark.FORMATS.values():
        model = random_pipeline(CONFIG, CPU, torch.bfloat16, scheme, head, gen).model
        for module in model.modules():
            if isinstance(module, QuantizedLinear | Fp8Linear):
                weight = module.parts.dense() if isinstance(module, Fp8Linear) else module.weight().float()
                assert weight.isfinite().all() and 0.01 < float(weight.std()) < 0.04, module.scheme.label


def test_figures_of_kernels_on_a_gpu_keep_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs the extra 'triton'")
    from kernels import benchmark as timed

    row = timed.Row("o", 16, "int4-g64", 4.8, 490.0, 0.16, 1.4, "matmul 16x16x4")
    monkeypatch.setattr(timed, "measure", lambda formats, others, ms: iter([[row]]))
    (item,) = bench_job._on_gpu([16])
    assert item == {
        "subject": "o", "rows": 16, "implementation": "int4-g64", "value": 4.8, "unit": "us",
        "gigabytes": 490.0, "share": 0.16, "against": 1.4, "how": "matmul 16x16x4",
    }  # fmt: skip
