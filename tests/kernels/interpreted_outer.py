"""Kernels of head and embedding, and rows of fused weights, on Triton's interpreter: run by test_interpreted.

Activations are float16: the interpreter's bfloat16 arithmetic is wrong.
"""

from __future__ import annotations

import pytest
import torch

from kernels.embedding import gather, gather_reference
from kernels.int8 import GEMV_ROWS, Int8Weight
from kernels.int8 import linear as int8_linear
from kernels.linear import MOST_GATED_ROWS, linear, linear_rows, linear_swiglu, path, prepare
from kernels.packing import pack
from kernels.samples import exact, int4, nvfp4, relative_error
from kernels.tiles import TiledWeight
from kernels.weights import concatenate_int4, concatenate_nvfp4


def int8(rows: int, columns: int, group: int, seed: int = 0) -> Int8Weight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, columns), generator=generator).to(torch.int8)
    scale = (torch.rand(rows, columns // group, generator=generator) * 0.02 + 0.003).bfloat16()
    return Int8Weight(pack(codes, 8), scale)


def draw(m: int, columns: int) -> torch.Tensor:
    return torch.randn(m, columns, generator=torch.Generator().manual_seed(m)).half()


@pytest.mark.parametrize(("rows", "columns", "group"), [(40, 64, 64), (33, 96, 32), (16, 2304, 128)])
@pytest.mark.parametrize("m", [1, 3, GEMV_ROWS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head(rows: int, columns: int, group: int, m: int, bias: bool) -> None:
    weight, x = int8(rows, columns, group), draw(m, columns)
    addend = torch.linspace(-1, 1, rows).half() if bias else None
    around = torch.full((m, rows + 4), 7.0).half()
    int8_linear(x, weight, addend, around[:, 2:-2])
    wanted = x.double() @ weight.dense().double().t() + (0 if addend is None else addend.double())
    assert relative_error(around[:, 2:-2], wanted) < 6e-4
    assert (around[:, :2] == 7).all() and (around[:, -2:] == 7).all()
    assert torch.equal(linear(x[None], prepare(weight), addend)[0], around[:, 2:-2])
    assert path(prepare(weight)) == "triton"


@pytest.mark.parametrize("byte", range(4))
def test_every_code_times_its_scale_is_rounded_as_the_reference_does(byte: int) -> None:
    codes = torch.zeros(256, 8, dtype=torch.int8)
    codes[:, byte] = torch.arange(-128, 128).to(torch.int8)
    weight = Int8Weight(pack(codes, 8), (torch.rand(256, 1) + 0.5).bfloat16())
    found = linear(torch.eye(8)[byte][None], weight)
    assert torch.equal(found[0], weight.dense()[:, byte].float())


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (5, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_rows(bits: int, group: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(bits)
    half = 1 << (bits - 1)
    packed = pack(torch.randint(-half, half, (50, 1088), generator=generator).to(torch.int8), bits)
    scale = (torch.rand(50, 1088 // group, generator=generator) + 0.1).bfloat16()
    ids = torch.tensor([49, 0, 7, 7])
    found = gather(ids, packed, scale, bits, 1088, dtype)
    assert found.dtype == dtype and torch.equal(
        found, gather_reference(ids, packed, scale, bits, 1088, dtype)
    )


@pytest.mark.parametrize("kind", ["int4", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_each_linear_of_a_fused_weight(kind: str, dtype: torch.dtype) -> None:
    if kind == "int4":
        parts = [int4(rows, 192, 64, False, rows) for rows in (40, 12, 12)]
        joint = prepare(concatenate_int4(parts))
    else:
        parts = [nvfp4(rows, 192, rows, rows) for rows in (40, 12, 12)]
        joint = prepare(concatenate_nvfp4(parts))
    assert isinstance(joint, TiledWeight)
    x = draw(6, 192).to(dtype).view(2, 3, 192)
    first = 0
    for part in parts:
        rows = part.shape[0]
        bias = torch.linspace(-1, 1, rows)
        for addend in (None, bias):
            found = linear_rows(x, joint, first, rows, addend)
            assert found.shape == (2, 3, rows) and found.dtype == dtype
            assert relative_error(found, exact(x, part, addend)) < 1e-3
        first += rows


@pytest.mark.parametrize("m", [2, MOST_GATED_ROWS + 3])
def test_gating_in_and_behind_the_product(m: int) -> None:
    weight, x = int4(48, 128, 64, False, 1), draw(m, 128) * 0.1
    around = torch.full((m, 30), 7.0).half()
    found = linear_swiglu(x, prepare(weight), out=around[:, 3:27])
    assert relative_error(found, exact(x, weight, None, gated=True)) < 2e-3
    assert (around[:, :3] == 7).all() and (around[:, 27:] == 7).all()
