"""One token's attention over a static cache and the choice of the next: references against plain formulas, Triton
kernels against references.

``interpreted_decoder`` runs the kernels in Triton's interpreter; bfloat16 is wrong in it and tested on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from kernels import decoder_ops
from kernels.decode_attention import SPLITS, Partials, decode_attention
from kernels.decoder_ops import rms_norm_reference
from kernels.greedy import Greedy

EPS = 1e-6


def operands(
    dtype: torch.dtype, device: str, heads: int, kv: int, size: int, capacity: int
) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(heads * size + capacity)

    def draw(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=make).to(device, kind)

    angles = draw(capacity, size // 2, kind=torch.float32).repeat(1, 2)
    return {
        "qkv": draw(1, (heads + 2 * kv) * size), "q_norm": draw(size), "k_norm": draw(size), "cos": angles.cos(),
        "sin": angles.sin(), "keys": draw(capacity, kv, size), "values": draw(capacity, kv, size),
    }  # fmt: skip


def outputs(
    o: dict[str, torch.Tensor], length: int, times: int = 1, splits: int = SPLITS
) -> list[torch.Tensor]:
    keys, values = o["keys"].clone(), o["values"].clone()
    kv, size = keys.shape[1:]
    heads = o["qkv"].shape[1] // size - 2 * kv
    partials = Partials.empty(heads, size, keys.device, splits)
    slot = torch.tensor([length], device=keys.device)
    for _ in range(times):
        out = torch.full((1, heads * size), float("nan"), device=keys.device, dtype=keys.dtype)
        decode_attention(
            o["qkv"], o["q_norm"], o["k_norm"], o["cos"], o["sin"], EPS, keys, values, slot, partials, out
        )
    return [out, keys, values]


def assert_close(got: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error < tolerance, float(error)


def test_reference_is_attention_over_the_rows_up_to_the_new_one() -> None:
    o = operands(torch.float64, "cpu", 6, 2, 32, 20)
    for length in (0, 7, 19):
        out, keys, values = outputs(o, length)
        q, k, v = o["qkv"].view(10, 32).split([6, 2, 2])
        c, s = o["cos"][length], o["sin"][length]

        def turned(x: torch.Tensor, weight: torch.Tensor, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            x = rms_norm_reference(x, weight, EPS)
            return x * c + torch.cat([-x[:, 16:], x[:, :16]], dim=1) * s

        assert torch.allclose(keys[length], turned(k, o["k_norm"], c, s), atol=1e-6)
        assert torch.equal(values[length], v)
        for head, query in enumerate(turned(q, o["q_norm"], c, s)):
            seen = keys[: length + 1, head // 3]
            wanted = (query @ seen.T / 32**0.5).softmax(0) @ values[: length + 1, head // 3]
            assert torch.allclose(out.view(6, 32)[head], wanted, atol=1e-6)


def run_greedy(device: str, dtype: torch.dtype) -> None:
    """The best of the known ids is chosen, the first of equals, and both buffers and counters move on."""
    greedy = Greedy(2500, 8, torch.device(device))
    greedy.known.fill_(2400)
    greedy.slot.fill_(5)
    logits = torch.randn(1, 2500, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    logits[0, 2450] = 99.0
    for row, best in ((5, 1100), (6, 17)):
        logits[0, best] = logits[0, 2300] = 20.0 + row
        greedy.step(logits)
        assert (int(greedy.token), int(greedy.chosen[row]), int(greedy.slot)) == (best, best, row + 1)
        assert greedy.logits[2400:].isneginf().all()
        assert torch.equal(greedy.logits[:2400], logits[0, :2400].float())


def test_greedy_choice() -> None:
    run_greedy("cpu", torch.float32)


CASES = [
    (6, 2, 32, 200, 8, (0, 1, 33, 199)),
    (2, 1, 64, 70, 4, (66,)),
    (4, 1, 32, 300, 4, (97, 299)),
]
"""Heads, key/value heads, head size, capacity, programs, lengths: nothing cached, full and started tiles, and more
tiles than programs.
"""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "kv", "size", "capacity", "splits", "lengths"),
    [
        *CASES,
        (16, 2, 128, 1024, SPLITS, (0, 63, 64, 639, 1023)),
        (16, 2, 128, 20000, SPLITS, (4064, 4065, 19999)),
    ],
)
def test_attention_on_a_gpu(
    dtype: torch.dtype, heads: int, kv: int, size: int, capacity: int, splits: int, lengths: tuple[int, ...]
) -> None:
    o = operands(dtype, "cuda", heads, kv, size, capacity)
    wide = {name: t.cpu().double() for name, t in o.items()}
    assert decoder_ops.uses_triton(o["qkv"])
    for length in lengths:
        got = outputs(o, length, 3, splits)
        assert_close([t.cpu() for t in got], outputs(wide, length), 8e-3)


@pytest.mark.gpu
def test_greedy_choice_on_a_gpu() -> None:
    run_greedy("cuda", torch.bfloat16)
