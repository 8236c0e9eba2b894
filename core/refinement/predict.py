"""What a refinement will take, told from headers, shapes and samples before anything is loaded.

Weights, gains, what is kept of the original's words and the widest moments are counted; attention's own products and
allocators' overhead are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from core.checkpoints.describe import CheckpointInfo
from core.checkpoints.layout import Layout
from core.evaluation import trajectory
from core.evaluation.drawings import sampling
from core.evaluation.extent import extent
from core.evaluation.footprint import footprint
from core.evaluation.samples import Settings
from core.lance.config import LATENT_CHANNELS
from core.lance.loading import load_tokenizer
from core.quantization.estimate import probe
from core.quantization.recipe import Recipe
from core.refinement.learning import CHECKS, PART
from core.refinement.objectives import TOP
from core.refinement.samples import Drawn, LanceSamples
from core.refinement.step import PASS_TOKENS
from core.runtime import memory
from core.runtime.device import pick_dtype

_WIDE, _GAIN = 4, 4
"""Bytes of float32; and how often a gain is held: itself, its gradient, two moments, beside the best so far."""


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak and seconds of computing."""

    device_bytes: int
    host_bytes: int
    """What the original said. On a CPU it comes on top of ``device_bytes``."""
    seconds: float


@dataclass(frozen=True)
class _Work:
    """What the samples come to."""

    asked: int
    """Tokens that the original runs."""
    items: dict[str, list[int]]
    """Tokens of each thing it said, by part."""
    answered: int
    """Tokens of the longest answer or text."""
    kept: int
    """Bytes of what it said."""
    reading: int
    """Bytes of the original while it is asked."""


def predict(
    info: CheckpointInfo, layout: Layout, recipe: Recipe, drawn: Drawn, device: torch.device
) -> Prediction:
    """What refining by ``recipe`` takes on ``device``, which is probed for about a second."""
    assert recipe.refine is not None
    dtype = pick_dtype("auto", device)
    item, structure = dtype.itemsize, layout.structure
    shapes = [layout.shapes[f"{name}.weight"] for name in structure.target_linears()]
    weights = sum(map(math.prod, shapes))
    each = weights // len(structure.experts)
    channels = layout.shapes[f"{structure.embedding}.weight"][1]
    vocabulary = layout.shapes[f"{structure.embedding}.weight"][0]
    inner = max(max(shape) for shape in shapes)
    work = (
        _lance(info, drawn, device, dtype) if isinstance(drawn, LanceSamples) else _text(info, drawn, dtype)
    )
    scales = sum(rows * (columns // recipe.scheme.width(columns)) for rows, columns in shapes)
    gains = scales if "scales" in recipe.refine.learn else 0
    longest = max(max(tokens, default=0) for tokens in work.items.values())
    rows = max(longest, PASS_TOKENS.get(device.type, PASS_TOKENS["cuda"]))
    heads = shapes[0][0] // structure.head_dim
    learning = (
        memory.weight_bytes(info, dtype) - weights * item  # embeddings, head, norms, vision tower
        + weights + weights * recipe.scheme.bits // 8 + scales * 3  # codes twice, spread and packed; scales and zeros
        + gains * _WIDE * (_GAIN + 1)
        + structure.layers * rows * channels * item
        + rows * (10 * channels + 6 * inner) * _WIDE
        + 3 * heads * longest**2 * _WIDE
        + 3 * max(map(math.prod, shapes)) * _WIDE
        + 3 * work.answered * vocabulary * 2 * _WIDE
    )  # fmt: skip
    products = 2 * each * work.asked
    for part in PART.values():
        tokens = work.items.get(part, [])
        if tokens:
            mean = sum(tokens) / len(tokens)
            products += int(2 * each * mean * recipe.refine.steps * min(recipe.refine.batch, len(tokens)) * 4)
            products += int(2 * each * sum(tokens) * recipe.refine.held_out * (CHECKS + 1))
    seconds = products * probe(recipe.scheme, device).products
    return Prediction(max(work.reading, learning), work.kept, round(seconds, 1))


def _lance(info: CheckpointInfo, drawn: LanceSamples, device: torch.device, dtype: torch.dtype) -> _Work:
    tokenizer = load_tokenizer(info.path)
    extents = [extent(one, drawn.settings[one.task], tokenizer) for one in drawn.samples]
    items: dict[str, list[int]] = {"kl": [], "velocity": []}
    asked = kept = 0
    for one in extents:
        if one.target is None:
            items["kl"].append(one.rows)
            asked += 2 * one.rows
            kept += one.answer * TOP * 2 * _WIDE + one.rows * _WIDE
            continue
        passes, velocities = _steps(drawn.settings[one.task])
        asked += (passes + velocities) * (one.block + 2) + (2 + velocities) * sum(one.context.values())
        items["velocity"] += [one.rows] * velocities
        kept += velocities * 2 * one.block * LATENT_CHANNELS * _WIDE
    reading = footprint(info, extents, device, dtype, decode=False).device
    return _Work(asked, items, max((one.answer for one in extents), default=0), kept, reading)


def _steps(settings: Settings) -> tuple[int, int]:
    """Passes of the sampler, and velocities that are kept, with both branches of guidance."""
    sampler = sampling(settings)
    times = sampler.schedule()[0].tolist()
    passes = [1 + sampler.guided(time) for time in times]
    return sum(passes), sum(passes[step] for step in trajectory.strata(len(times)))


def _text(info: CheckpointInfo, drawn: Drawn, dtype: torch.dtype) -> _Work:
    assert not isinstance(drawn, LanceSamples)
    items = [len(piece.tokens) for piece in drawn]
    total = sum(items)
    kept = total * TOP * 2 * _WIDE
    return _Work(total, {"kl": items}, max(items), kept, memory.weight_bytes(info, dtype))
