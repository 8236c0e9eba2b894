"""Kernels of head and embedding, and rows of fused weights, on a CUDA device: ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from kernels.embedding import gather, gather_reference
from kernels.int8 import Int8Weight
from kernels.linear import linear, linear_rows, linear_swiglu, prepare
from kernels.packing import pack
from kernels.samples import exact, int4, moved, nvfp4, relative_error
from kernels.tiles import TiledWeight
from kernels.weights import concatenate_int4, concatenate_nvfp4

pytestmark = pytest.mark.gpu
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@DTYPES
@pytest.mark.parametrize(("rows", "columns", "group"), [(1000, 2048, 64), (77, 96, 32), (130, 2304, 128)])
def test_the_head(rows: int, columns: int, group: int, dtype: torch.dtype) -> None:
    codes = torch.randint(-128, 128, (rows, columns)).to(torch.int8)
    scale = (torch.rand(rows, columns // group) * 0.02 + 0.003).bfloat16()
    weight = Int8Weight(pack(codes, 8).cuda(), scale.cuda())
    bias = torch.linspace(-2, 2, rows).to("cuda", dtype)
    for m in (1, 2, 5, 16, 17, 100):
        x = torch.randn(m, columns).to("cuda", dtype)
        for addend in (None, bias):
            torch.full((m, rows), torch.nan, dtype=dtype, device="cuda")
            wanted = x.double() @ weight.dense().double().t() + (0 if addend is None else addend.double())
            assert relative_error(linear(x, weight, addend), wanted) < 4e-3, f"m {m}"


def test_every_code_times_its_scale_is_rounded_as_the_reference_does() -> None:
    codes = torch.arange(-128, 128).to(torch.int8).view(1, 256).expand(8, 256)
    weight = Int8Weight(pack(codes, 8).cuda(), (torch.rand(8, 4) + 0.5).bfloat16().cuda())
    found = torch.cat([linear(row[None], weight) for row in torch.eye(256).cuda()])
    assert torch.equal(found.t(), weight.dense().float())


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_embedding_rows(bits: int, group: int, dtype: torch.dtype) -> None:
    half = 1 << (bits - 1)
    packed = pack(torch.randint(-half, half, (500, 2048)).to(torch.int8), bits).cuda()
    scale = (torch.rand(500, 2048 // group) + 0.1).bfloat16().cuda()
    ids = torch.randint(0, 500, (37,)).cuda()
    found = gather(ids, packed, scale, bits, 2048, dtype)
    assert torch.equal(found, gather_reference(ids, packed, scale, bits, 2048, dtype))


@DTYPES
@pytest.mark.parametrize("kind", ["int4", "nvfp4"])
def test_each_linear_of_a_fused_weight(kind: str, dtype: torch.dtype) -> None:
    sizes = (512, 72, 72)
    if kind == "int4":
        parts = [int4(rows, 1024, 64, False, rows) for rows in sizes]
        joint = prepare(moved(concatenate_int4(parts), "cuda"))
    else:
        parts = [nvfp4(rows, 1024, rows, rows) for rows in sizes]
        joint = prepare(moved(concatenate_nvfp4(parts), "cuda"))
    assert isinstance(joint, TiledWeight)
    for m in (1, 300):
        x, first = torch.randn(m, 1024).to("cuda", dtype), 0
        for part in parts:
            rows = part.shape[0]
            bias = torch.linspace(-1, 1, rows).to("cuda", dtype)
            found = linear_rows(x, joint, first, rows, bias)
            assert relative_error(found, exact(x, moved(part, "cuda"), bias)) < 4e-3
            first += rows


@pytest.mark.parametrize("m", [1, 16, 17, 700])
def test_gating_in_and_behind_the_product(m: int) -> None:
    stored = moved(int4(1024, 512, 64, False, 6), "cuda")
    x = torch.randn(m, 512).to("cuda", torch.bfloat16) * 0.1
    around = torch.full((m, 520), 7.0, dtype=torch.bfloat16, device="cuda")
    found = linear_swiglu(x, prepare(stored), out=around[:, 4:516])
    assert relative_error(found, exact(x, stored, None, gated=True)) < 4e-3
    assert (around[:, :4] == 7).all() and (around[:, 516:] == 7).all()
