# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Triton kernel of ``greedy``; importing this module needs triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoder_triton import chain

BLOCK = 1024
"""Logits that a program looks at."""


def blocks(vocabulary: int) -> int:
    """Programs for so many logits."""
    return int(triton.cdiv(vocabulary, BLOCK))


@triton.jit
def _choose(logits, known, masked, token, slot, chosen, tops, places, ticket, V, BLOCK: tl.constexpr,
            BLOCKS: tl.constexpr, CHAINED: tl.constexpr):  # fmt: skip
    block = tl.program_id(0)
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < V
    limit = tl.load(known)
    if CHAINED:
        tl.extra.cuda.gdc_wait()
    value = tl.load(logits + index, mask=inside, other=float("-inf")).to(tl.float32)
    value = tl.where(index < limit, value, float("-inf"))
    tl.store(masked + index, value, mask=inside)
    top, place = tl.max(value, 0, return_indices=True)
    tl.store(tops + block, top)
    tl.store(places + block, block * BLOCK + place)
    tl.debug_barrier()
    drawn = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    if drawn == tl.num_programs(0) - 1:
        each = tl.arange(0, BLOCKS)
        # .cg: from the L2 cache, where the other programs' results are; not from a stale L1.
        tops_of_all = tl.load(
            tops + each, mask=each < tl.num_programs(0), other=float("-inf"), cache_modifier=".cg"
        )
        _, winner = tl.max(tops_of_all, 0, return_indices=True)
        best = tl.load(places + winner, cache_modifier=".cg").to(tl.int64)
        row = tl.load(slot)
        tl.store(token, best)
        tl.store(chosen + row, best)
        tl.store(slot, row + 1)
        tl.store(ticket, 0)


def choose(
    logits: Tensor, known: Tensor, masked: Tensor, token: Tensor, slot: Tensor, chosen: Tensor, tops: Tensor,
    places: Tensor, ticket: Tensor,
) -> None:  # fmt: skip
    """See ``greedy.Greedy``, whose tensors these are; scratch: float32 and int32 [blocks], and a zero int32 [1]."""
    count = logits.shape[1]
    programs = blocks(count)
    _choose[(programs,)](
        logits, known, masked, token, slot, chosen, tops, places, ticket, count, BLOCK=BLOCK,
        BLOCKS=triton.next_power_of_2(programs), num_warps=4, **chain(logits),
    )  # fmt: skip
