"""The layer operations between matrix products: references against plain formulas, Triton kernels against references.

``interpreted_decoder`` runs the kernels in Triton's interpreter; bfloat16 is wrong in it and tested on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from kernels import decoder_ops


def operands(dtype: torch.dtype, device: str, rows: int, size: int) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(rows * size)

    def draw(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=make).to(device, kind)

    heads, kv = 6, 2
    return {
        "x": draw(rows, 96), "delta": draw(rows, 96), "norm": draw(96), "qkv": draw(rows, (heads + 2 * kv) * size),
        "q_norm": draw(size), "k_norm": draw(size), "cos": draw(rows, size // 2, kind=torch.float32).repeat(1, 2),
        "sin": draw(rows, size // 2, kind=torch.float32).repeat(1, 2), "gate_up": draw(rows, 2 * 1030),
        "slots": torch.randperm(rows + 3, generator=make)[:rows].to(device),
        "places": torch.randperm(rows, generator=make).to(device),
    }  # fmt: skip


def outputs(o: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    rows, size = o["x"].shape[0], o["q_norm"].shape[0]
    x = o["x"].clone()
    plain = decoder_ops.rms_norm(x, o["norm"], 1e-6, torch.empty_like(x))
    summed = decoder_ops.add_rms_norm(x, o["delta"], o["norm"], 1e-6, torch.empty_like(x))
    queries = x.new_zeros(rows, 6, size)
    keys, values = x.new_zeros(rows + 3, 2, size), x.new_zeros(rows + 3, 2, size)
    decoder_ops.qk_norm_rope(
        o["qkv"], o["q_norm"], o["k_norm"], o["cos"], o["sin"], 1e-6, queries, keys, values, o["slots"], o["places"],
    )  # fmt: skip
    active = decoder_ops.swiglu(o["gate_up"], x.new_empty(rows, 1030))
    return [plain, summed, x, queries, keys, values, active]


def assert_close(got: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
        assert error < tolerance, float(error)


def test_half_precision_references_follow_double_precision() -> None:
    o = operands(torch.bfloat16, "cpu", 5, 32)
    wide = {name: t if t.dtype == torch.int64 else t.double() for name, t in o.items()}
    assert_close(outputs(o), outputs(wide), 8e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 37, 4612])
def test_kernels_on_a_gpu(dtype: torch.dtype, rows: int) -> None:
    o = operands(dtype, "cuda", rows, 128)
    wide = {name: t if t.dtype == torch.int64 else t.double() for name, t in o.items()}
    assert decoder_ops.uses_triton(o["x"])
    assert_close(outputs(o), outputs(wide), 8e-3)
