"""Triton kernels of ``decoder_ops``; importing this module needs triton. Every operand has contiguous rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.capability import capability


def overlaps(device: torch.device) -> bool:
    """Whether a kernel can be launched before the one it depends on has ended (compute capability 9.0)."""
    return capability(device) >= (9, 0)


def chain(x: Tensor) -> dict[str, bool]:
    """Launch options of a kernel with a constant CHAINED that starts early and waits itself for what it reads.

    For the short kernels of a decode step, whose launches take as long as their work. Such a kernel calls
    ``gdc_wait`` before it reads what the launch before it wrote, and before it writes anything. It lets the next
    one start only after that: programs of kernels further ahead would sit where those due now have to run.
    """
    return {"CHAINED": True, "launch_pdl": True} if overlaps(x.device) else {"CHAINED": False}


@triton.jit
def _add_rms_norm(x, delta, weight, out, stride_x, stride_d, stride_o, eps, D: tl.constexpr, BLOCK: tl.constexpr,
                  ADD: tl.constexpr, CHAINED: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    value = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    if ADD:
        value += tl.load(delta + row * stride_d + column, mask=inside, other=0.0).to(tl.float32)
        value = value.to(kind).to(tl.float32)
        tl.store(x + row * stride_x + column, value.to(kind), mask=inside)
    scale = tl.rsqrt(tl.sum(value * value) / D + eps)
    normal = (value * scale).to(kind).to(tl.float32)
    tl.store(out + row * stride_o + column, (normal * w).to(kind), mask=inside)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """x += delta in place (if given), then RMSNorm into ``out``; rows [M, D]."""
    rows, size = x.shape
    other = x if delta is None else delta
    block = triton.next_power_of_2(size)
    _add_rms_norm[(rows,)](
        x, other, weight, out, x.stride(0), other.stride(0), out.stride(0), eps, D=size, BLOCK=block,
        ADD=delta is not None, num_warps=min(8, max(1, block // 256)),
        **(chain(x) if rows == 1 else {"CHAINED": False}),
    )  # fmt: skip
    return out


@triton.jit
def _qk_norm_rope(qkv, q_weight, k_weight, cos, sin, queries, keys, values, rows, places, stride_qkv, eps,
                  HEADS: tl.constexpr, KV: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = 2 * HALF
    kind = queries.dtype.element_ty
    head = tl.arange(0, BLOCK)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    source = qkv + row * stride_qkv + head * size + lane
    first = tl.load(source, mask=head < HEADS + 2 * KV, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=head < HEADS + 2 * KV, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / size + eps)[:, None]
    query = head < HEADS
    w1 = tl.where(query, tl.load(q_weight + lane), tl.load(k_weight + lane)).to(tl.float32)
    w2 = tl.where(query, tl.load(q_weight + HALF + lane), tl.load(k_weight + HALF + lane)).to(tl.float32)
    a = ((first * scale).to(kind).to(tl.float32) * w1).to(kind).to(tl.float32)
    b = ((second * scale).to(kind).to(tl.float32) * w2).to(kind).to(tl.float32)
    # Both halves of a head turn by the same angles.
    c = tl.load(cos + row * size + lane)
    s = tl.load(sin + row * size + lane)
    left, right = (a * c - b * s).to(kind), (b * c + a * s).to(kind)
    target = queries + (tl.load(places + row) * HEADS + head) * size + lane
    tl.store(target, left, mask=query)
    tl.store(target + HALF, right, mask=query)
    slot = tl.load(rows + row)
    key = (head >= HEADS) & (head < HEADS + KV)
    target = keys + (slot * KV + head - HEADS) * size + lane
    tl.store(target, left, mask=key)
    tl.store(target + HALF, right, mask=key)
    value = (head >= HEADS + KV) & (head < HEADS + 2 * KV)
    target = values + (slot * KV + head - HEADS - KV) * size + lane
    tl.store(target, first.to(kind), mask=value)
    tl.store(target + HALF, second.to(kind), mask=value)


def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, queries: Tensor,
    keys: Tensor, values: Tensor, rows: Tensor, places: Tensor,
) -> None:  # fmt: skip
    """See ``decoder_ops.qk_norm_rope``; one program per row."""
    _, heads, size = queries.shape
    kv = keys.shape[1]
    if size & (size - 1):
        raise ValueError(f"head_dim {size} is no power of two")
    _qk_norm_rope[(qkv.shape[0],)](
        qkv, q_weight, k_weight, cos, sin, queries, keys, values, rows, places, qkv.stride(0), eps, HEADS=heads, KV=kv,
        BLOCK=triton.next_power_of_2(heads + 2 * kv), HALF=size // 2, num_warps=4,
    )  # fmt: skip


@triton.jit
def _swiglu(gate_up, out, stride_in, stride_out, I, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < I
    kind = out.dtype.element_ty
    gate = tl.load(gate_up + row * stride_in + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride_in + I + column, mask=inside, other=0.0).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out + row * stride_out + column, (active * up).to(kind), mask=inside)


def swiglu(gate_up: Tensor, out: Tensor) -> Tensor:
    """See ``decoder_ops.swiglu``."""
    rows, size = out.shape
    block = 1024
    _swiglu[(rows, triton.cdiv(size, block))](
        gate_up, out, gate_up.stride(0), out.stride(0), size, BLOCK=block, num_warps=4
    )
    return out
