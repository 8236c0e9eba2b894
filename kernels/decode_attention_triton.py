# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Triton kernel of ``decode_attention``; importing this module needs triton."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoder_triton import chain

TILE = 64
"""Rows of the cache that a program takes at a time."""


@triton.jit
def _turn(first, second, w1, w2, c, s, eps, kind: tl.constexpr, D: tl.constexpr):
    """RMSNorm of heads over the last dimension, given in halves, then their rotation; rounded as the modules do."""
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
    a = ((first * scale).to(kind).to(tl.float32) * w1[None, :]).to(kind).to(tl.float32)
    b = ((second * scale).to(kind).to(tl.float32) * w2[None, :]).to(kind).to(tl.float32)
    return (a * c[None, :] - b * s[None, :]).to(kind), (b * c[None, :] + a * s[None, :]).to(kind)


@triton.jit
def _merge(out, sums, stats, head, used, KV: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
           D: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Add the parts of all programs of a key/value head and write its query heads."""
    group = tl.arange(0, HEADS)
    lane = tl.arange(0, D)
    split = tl.arange(0, SPLITS)
    each = (head * SPLITS + split)[:, None] * GROUP + group[None, :]
    there = (split < used)[:, None] & (group < GROUP)[None, :]
    # .cg: from the L2 cache, where the other programs' parts are; not from a stale L1.
    peaks = tl.load(stats + each, mask=there, other=float("-inf"), cache_modifier=".cg")
    weights = tl.load(stats + KV * SPLITS * GROUP + each, mask=there, other=0.0, cache_modifier=".cg")
    top = tl.max(peaks, 0)
    total = tl.sum(tl.exp2(peaks - top[None, :]) * weights, 0)
    whole = tl.zeros([HEADS, D], tl.float32)
    for first in range(0, used, CHUNK):
        part = first + tl.arange(0, CHUNK)
        at = (head * SPLITS + part)[:, None] * GROUP + group[None, :]
        here = (part < used)[:, None] & (group < GROUP)[None, :]
        share = tl.exp2(
            tl.load(stats + at, mask=here, other=float("-inf"), cache_modifier=".cg") - top[None, :]
        )
        some = tl.load(sums + at[:, :, None] * D + lane[None, None, :], mask=here[:, :, None], other=0.0,
                       cache_modifier=".cg")  # fmt: skip
        whole += tl.sum(some * share[:, :, None], 0)
    target = out + (head * GROUP + group)[:, None] * D + lane[None, :]
    tl.store(target, (whole / total[:, None]).to(out.dtype.element_ty), mask=(group < GROUP)[:, None])


@triton.jit
def _decode_attention(qkv, q_weight, k_weight, cos, sin, keys, values, slot_at, out, sums, stats, tickets, eps,
                      scale, KV: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
                      TILE: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr,
                      CHAINED: tl.constexpr):  # fmt: skip
    split = tl.program_id(0)
    head = tl.program_id(1)
    D: tl.constexpr = 2 * HALF
    # A matrix product has at least 16 rows; heads behind the group's last are zeros and are not stored.
    ROWS: tl.constexpr = HEADS if HEADS > 16 else 16
    kind: tl.constexpr = qkv.dtype.element_ty
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slot_at).to(tl.int32)
    span = tl.cdiv(slot + 1, SPLITS * TILE) * TILE
    used = tl.cdiv(slot + 1, span)
    if split >= used:
        return
    start = split * span
    stop = tl.minimum(start + span, slot + 1)
    lane = tl.arange(0, HALF)
    wide = tl.arange(0, D)
    row = start + tl.arange(0, TILE)
    base = ((row * KV + head) * D)[:, None]
    old = (row < slot)[:, None]
    # What earlier steps wrote is there before the launch that this one waits for has ended.
    k1 = tl.load(keys + base + lane[None, :], mask=old, other=0.0)
    k2 = tl.load(keys + base + HALF + lane[None, :], mask=old, other=0.0)
    v = tl.load(values + base + wide[None, :], mask=old, other=0.0)
    c = tl.load(cos + slot * D + lane)
    s = tl.load(sin + slot * D + lane)
    qw1, qw2 = tl.load(q_weight + lane).to(tl.float32), tl.load(q_weight + HALF + lane).to(tl.float32)
    kw1, kw2 = tl.load(k_weight + lane).to(tl.float32), tl.load(k_weight + HALF + lane).to(tl.float32)
    if CHAINED:
        tl.extra.cuda.gdc_wait()

    group = tl.arange(0, ROWS)
    member = (group < GROUP)[:, None]
    at = qkv + (head * GROUP + group)[:, None] * D + lane[None, :]
    q1 = tl.load(at, mask=member, other=0.0).to(tl.float32)
    q2 = tl.load(at + HALF, mask=member, other=0.0).to(tl.float32)
    at = qkv + (KV * GROUP + head) * D + lane[None, :]
    new1, new2 = tl.load(at).to(tl.float32), tl.load(at + HALF).to(tl.float32)
    new_v = tl.load(qkv + (KV * GROUP + KV + head) * D + wide[None, :])
    q1, q2 = _turn(q1, q2, qw1, qw2, c, s, eps, kind, D)
    new1, new2 = _turn(new1, new2, kw1, kw2, c, s, eps, kind, D)
    if split == used - 1:
        place = (slot * KV + head) * D + lane[None, :]
        tl.store(keys + place, new1)
        tl.store(keys + place + HALF, new2)
        tl.store(values + (slot * KV + head) * D + wide[None, :], new_v)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D], tl.float32)
    for first in range(start, stop, TILE):
        row = first + tl.arange(0, TILE)
        fresh = (row == slot)[:, None]
        scores = tl.dot(q1, tl.trans(tl.where(fresh, new1, k1)))
        scores = tl.dot(q2, tl.trans(tl.where(fresh, new2, k2)), scores)
        scores = tl.where((row <= slot)[None, :], scores * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        weight = weight * fade + tl.sum(shares, 1)
        total = tl.dot(shares.to(kind), tl.where(fresh, new_v, v), total * fade[:, None])
        peak = higher
        row += TILE
        base = ((row * KV + head) * D)[:, None]
        old = ((row < slot) & (row < stop))[:, None]
        k1 = tl.load(keys + base + lane[None, :], mask=old, other=0.0)
        k2 = tl.load(keys + base + HALF + lane[None, :], mask=old, other=0.0)
        v = tl.load(values + base + wide[None, :], mask=old, other=0.0)

    if used == 1:
        target = out + (head * GROUP + group)[:, None] * D + wide[None, :]
        tl.store(target, (total / weight[:, None]).to(out.dtype.element_ty), mask=member)
    else:
        mine = (head * SPLITS + split) * GROUP + group
        tl.store(sums + mine[:, None] * D + wide[None, :], total, mask=member)
        tl.store(stats + mine, peak, mask=group < GROUP)
        tl.store(stats + KV * SPLITS * GROUP + mine, weight, mask=group < GROUP)
        # Every thread's part must be on its way before the one thread that draws the ticket releases it.
        tl.debug_barrier()
        ticket = tl.atomic_add(tickets + head, 1, sem="acq_rel", scope="gpu")
        if ticket == used - 1:
            _merge(out, sums, stats, head, used, KV, GROUP, HEADS, D, SPLITS, CHUNK)
            tl.store(tickets + head, 0)


def decode_attention(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, keys: Tensor,
    values: Tensor, slot: Tensor, sums: Tensor, stats: Tensor, tickets: Tensor, out: Tensor, tile: int = TILE,
    warps: int = 4,
) -> None:  # fmt: skip
    """See ``decode_attention.decode_attention``; ``sums``, ``stats`` and ``tickets`` as in its ``Partials``."""
    kv, splits, group, size = sums.shape
    _decode_attention[(splits, kv)](
        qkv, q_weight, k_weight, cos, sin, keys, values, slot, out, sums, stats, tickets, eps,
        math.log2(math.e) / math.sqrt(size), KV=kv, GROUP=group, HEADS=triton.next_power_of_2(group), HALF=size // 2,
        TILE=tile, SPLITS=splits, CHUNK=16, num_warps=warps, **chain(qkv),
    )  # fmt: skip
