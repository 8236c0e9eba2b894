"""One row with its norm or the residual stream, on a CUDA device: ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from kernels import row
from kernels.arguments import RowNorm
from kernels.decoder_ops import rms_norm
from kernels.linear import linear, linear_swiglu, prepare
from kernels.samples import int4, moved, nvfp4, relative_error
from kernels.weights import StoredWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WEIGHTS = {
    "int4": int4(2560, 2048, 64, False, 1),
    "gate and up": int4(4096, 2048, 64, False, 2),
    "nvfp4": nvfp4(2048, 2048, 3),
    "long": int4(2048, 11008, 64, False, 4),
    "odd": int4(531, 864, 32, True, 5),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_norm_and_sum_inside_the_product_are_those_beside_it(name: str, dtype: torch.dtype) -> None:
    stored: StoredWeight = WEIGHTS[name]
    weight = prepare(moved(stored, "cuda"))
    generator = torch.Generator().manual_seed(1)
    rows, columns = stored.shape
    x = (2 * torch.randn(1, columns, generator=generator)).to("cuda", dtype)
    norm = RowNorm(torch.randn(columns, generator=generator).to("cuda", dtype), 1e-6)
    bias = torch.linspace(-2, 2, rows).to("cuda", dtype)
    normed = rms_norm(x, norm.weight, norm.eps, torch.empty_like(x))
    for _ in range(3):
        found = row.linear_of_norm(x, norm, weight, bias, torch.empty(1, rows, dtype=dtype, device="cuda"))
        assert relative_error(found, linear(normed, weight, bias).double()) < 2e-3
        residual = torch.randn(1, rows, generator=generator).to("cuda", dtype)
        wanted = residual + linear(x, weight, bias)
        assert torch.equal(row.add_linear(x, weight, bias, residual), wanted)
    if rows % 2 == 0:
        out = torch.empty(1, rows // 2, dtype=dtype, device="cuda")
        found = row.linear_of_norm(x, norm, weight, bias, out, gated=True)
        assert relative_error(found, linear_swiglu(normed, weight, bias).double()) < 4e-3
