"""A decode step's small kernels against their references on Triton's interpreter: run by test_interpreted.

In float16 on the CPU: the interpreter's bfloat16 arithmetic is wrong.
"""

from __future__ import annotations

import pytest
import test_decode_attention as attention
import test_decoder_ops as layer
import torch

from kernels import decoder_ops


def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoder_ops._triton is not None
    monkeypatch.setattr(decoder_ops, "uses_triton", lambda x: True)


@pytest.mark.parametrize(("rows", "size"), [(1, 32), (5, 64)])
def test_operations_between_products(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = layer.operands(torch.float16, "cpu", rows, size)
    wanted = layer.outputs(operands)
    by_kernels(monkeypatch)
    layer.assert_close(layer.outputs(operands), wanted, 1e-3)


@pytest.mark.parametrize(("heads", "kv", "size", "capacity", "splits", "lengths"), attention.CASES)
def test_attention(
    heads: int, kv: int, size: int, capacity: int, splits: int, lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    operands = attention.operands(torch.float16, "cpu", heads, kv, size, capacity)
    wanted = [attention.outputs(operands, length) for length in lengths]
    by_kernels(monkeypatch)
    for length, outputs in zip(lengths, wanted, strict=True):
        attention.assert_close(attention.outputs(operands, length, splits=splits), outputs, 2e-3)


def test_the_greedy_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernels(monkeypatch)
    attention.run_greedy("cpu", torch.float16)
