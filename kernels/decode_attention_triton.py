# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Triton kernels of ``decode_attention``; importing this module needs triton."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoder_triton import chain

TILE = 32
"""Rows of the cache that a program takes at a time."""

WARPS = 4


@triton.jit
def _programs(slot, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Over how many programs the ``slot`` cached rows are spread, and rows of each; one more takes the new row."""
    span = tl.maximum(tl.cdiv(slot, (SPLITS - 1) * TILE), 1) * TILE
    return tl.cdiv(slot, span), span


@triton.jit
def _turn(first, second, w1, w2, c, s, eps, kind: tl.constexpr, D: tl.constexpr):
    """RMSNorm of heads over the last dimension, given in halves, then their rotation; rounded as the modules do."""
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
    a = ((first * scale).to(kind).to(tl.float32) * w1[None, :]).to(kind).to(tl.float32)
    b = ((second * scale).to(kind).to(tl.float32) * w2[None, :]).to(kind).to(tl.float32)
    return (a * c[None, :] - b * s[None, :]).to(kind), (b * c[None, :] + a * s[None, :]).to(kind)


@triton.jit
def _see(q1, q2, k1, k2, v, inside, scale, peak, weight, total):
    """Take a tile of keys (in halves) and values into the running softmax of queries."""
    scores = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1)))
    scores = tl.where(inside[None, :], scores * scale, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    shares = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(peak - higher)
    weight = weight * fade + tl.sum(shares, 1)
    return higher, weight, tl.dot(shares.to(v.dtype), v, total * fade[:, None])


@triton.jit
def _attend(qkv, q_weight, k_weight, cos, sin, keys, values, slot_at, sums, stats, eps, scale, KV: tl.constexpr,
            GROUP: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
            CHAINED: tl.constexpr):  # fmt: skip
    """One program's part of the rows for the query heads of one key/value head; grid (SPLITS, KV)."""
    split = tl.program_id(0)
    head = tl.program_id(1)
    D: tl.constexpr = 2 * HALF
    kind: tl.constexpr = qkv.dtype.element_ty
    slot = tl.load(slot_at).to(tl.int32)
    used, span = _programs(slot, SPLITS, TILE)
    if split > used:
        return
    start = split * span
    stop = tl.minimum(start + span, slot)
    lane = tl.arange(0, HALF)
    wide = tl.arange(0, D)
    row = start + tl.arange(0, TILE)
    base = ((row * KV + head) * D)[:, None]
    # What earlier steps wrote is there before the launch that this one waits for has ended.
    k1 = tl.load(keys + base + lane[None, :], mask=(row < stop)[:, None], other=0.0)
    k2 = tl.load(keys + base + HALF + lane[None, :], mask=(row < stop)[:, None], other=0.0)
    v = tl.load(values + base + wide[None, :], mask=(row < stop)[:, None], other=0.0)
    c = tl.load(cos + slot * D + lane)
    s = tl.load(sin + slot * D + lane)
    qw1, qw2 = tl.load(q_weight + lane).to(tl.float32), tl.load(q_weight + HALF + lane).to(tl.float32)
    kw1, kw2 = tl.load(k_weight + lane).to(tl.float32), tl.load(k_weight + HALF + lane).to(tl.float32)
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    group = tl.arange(0, ROWS)
    member = (group < GROUP)[:, None]
    at = qkv + (head * GROUP + group)[:, None] * D + lane[None, :]
    new = qkv + (KV * GROUP + head) * D + lane[None, :]
    q1 = tl.load(at, mask=member, other=0.0).to(tl.float32)
    q2 = tl.load(at + HALF, mask=member, other=0.0).to(tl.float32)
    n1, n2 = tl.load(new).to(tl.float32), tl.load(new + HALF).to(tl.float32)
    new_v = tl.load(qkv + (KV * GROUP + KV + head) * D + wide)
    q1, q2 = _turn(q1, q2, qw1, qw2, c, s, eps, kind, D)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D], tl.float32)
    if split == used:
        left, right = _turn(n1, n2, kw1, kw2, c, s, eps, kind, D)
        place = (slot * KV + head) * D
        tl.store(keys + place + lane[None, :], left)
        tl.store(keys + place + HALF + lane[None, :], right)
        tl.store(values + place + wide, new_v)
        product = q1.to(tl.float32) * left.to(tl.float32) + q2.to(tl.float32) * right.to(tl.float32)
        peak = tl.sum(product, 1) * scale
        weight += 1.0
        total += new_v.to(tl.float32)[None, :]
    else:
        peak, weight, total = _see(q1, q2, k1, k2, v, row < stop, scale, peak, weight, total)
        for first in tl.range(start + TILE, stop, TILE, num_stages=1):
            inside = first + tl.arange(0, TILE) < stop
            base = (((first + tl.arange(0, TILE)) * KV + head) * D)[:, None]
            k1 = tl.load(keys + base + lane[None, :], mask=inside[:, None], other=0.0)
            k2 = tl.load(keys + base + HALF + lane[None, :], mask=inside[:, None], other=0.0)
            v = tl.load(values + base + wide[None, :], mask=inside[:, None], other=0.0)
            peak, weight, total = _see(q1, q2, k1, k2, v, inside, scale, peak, weight, total)

    mine = (head * GROUP + group) * SPLITS + split
    tl.store(sums + mine[:, None] * D + wide[None, :], total, mask=member)
    tl.store(stats + mine, peak, mask=group < GROUP)
    tl.store(stats + KV * GROUP * SPLITS + mine, weight, mask=group < GROUP)


@triton.jit
def _add_up(sums, stats, slot_at, out, HEADS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
            SPLITS: tl.constexpr, CHAINED: tl.constexpr):  # fmt: skip
    """Add the parts of one query head; grid (HEADS,)."""
    head = tl.program_id(0)
    used, _ = _programs(tl.load(slot_at).to(tl.int32), SPLITS, TILE)
    part = tl.arange(0, SPLITS)
    wide = tl.arange(0, D)
    at = head * SPLITS + part
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    peak = tl.load(stats + at, mask=part <= used, other=float("-inf"))
    weight = tl.load(stats + HEADS * SPLITS + at, mask=part <= used, other=0.0)
    total = tl.load(sums + at[:, None] * D + wide[None, :], mask=(part <= used)[:, None], other=0.0)
    share = tl.exp2(peak - tl.max(peak, 0))
    whole = tl.sum(total * share[:, None], 0) / tl.sum(weight * share, 0)
    tl.store(out + head * D + wide, whole.to(out.dtype.element_ty))


def decode_attention(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, keys: Tensor,
    values: Tensor, slot: Tensor, sums: Tensor, stats: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """See ``decode_attention.decode_attention``; ``sums`` and ``stats`` as in its ``Partials``."""
    heads, splits, size = sums.shape
    kv = keys.shape[1]
    group = heads // kv
    options = chain(qkv)
    # A matrix product has at least 16 rows; those behind the group's last head are zeros and are not stored.
    _attend[(splits, kv)](
        qkv, q_weight, k_weight, cos, sin, keys, values, slot, sums, stats, eps,
        math.log2(math.e) / math.sqrt(size), KV=kv, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        HALF=size // 2, TILE=TILE, SPLITS=splits, num_warps=WARPS, **options,
    )  # fmt: skip
    _add_up[(heads,)](
        sums, stats, slot, out, HEADS=heads, D=size, TILE=TILE, SPLITS=splits, num_warps=8, **options
    )
