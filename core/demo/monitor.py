"""How well the model in training does on drawings it has not seen."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.demo.batched import BatchedLance, Captions
from core.demo.canvas import Question
from core.demo.captions import Captioned, caption
from core.demo.drawing import HELD_OUT, KINDS, draw
from core.demo.recognise import recognise
from core.demo.texts import ANSWER, Texts
from core.demo.vae_training import paint
from core.lance.sampler import Sampling, guide

_BATCH = 128
_FIRST = HELD_OUT + 500_000_000
"""Seeds of the monitor's questions: neither trained on nor in a suite."""


@dataclass
class Exam:
    """Questions drawn once: kinds, pixels uint8 [N, 224, 224, 3], ids [N, SEGMENT], answer starts and counts [N]."""

    kinds: list[str]
    pixels: torch.Tensor
    segments: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor


def _drawn(task: tuple[str, int, Path]) -> tuple[Any, Any, int, int]:
    kind, seed, tokenizer = task
    drawn = draw(kind, seed)
    ids, start, count = Texts(tokenizer).segment(Question(kind, drawn.question, drawn.answer))
    return np.asarray(drawn.image), ids, start, count


def exam(tokenizer: Path, per_kind: int, workers: int) -> Exam:
    """Draw ``per_kind`` questions of every kind. Call it before CUDA is used."""
    tasks = [(kind, _FIRST + index, tokenizer) for kind in KINDS for index in range(per_kind)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = list(
            zip(*pool.map(_drawn, tasks, chunksize=max(1, len(tasks) // (4 * workers))), strict=True)
        )
    pixels, segments = (torch.from_numpy(np.stack(part)) for part in parts[:2])
    starts, counts = (torch.tensor(part) for part in parts[2:])
    return Exam([kind for kind, _, _ in tasks], pixels, segments.long(), starts, counts)


def labels(segments: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The token each logit of ``BatchedLance.answers`` must predict, -100 behind the answer: [B, Q, ANSWER]."""
    offsets = torch.arange(ANSWER, device=segments.device)
    reach = (starts[..., None] + offsets).clamp(max=segments.shape[-1] - 1)
    wanted = segments.gather(-1, reach)
    return wanted.masked_fill(offsets >= counts[..., None], -100)


@torch.no_grad()
def marks(model: BatchedLance, paper: Exam, dtype: torch.dtype) -> dict[str, float]:
    """Share of exactly right greedy answers per kind, and ``all``.

    A greedy answer equals the expected one if and only if each of its tokens is the most likely one after the expected
    tokens before it, so one forward pass decides.
    """
    device = model.latent_rows.device
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, len(paper.kinds), _BATCH):
        rows = slice(first, first + _BATCH)
        segments, starts, counts = (
            part[rows, None].to(device) for part in (paper.segments, paper.starts, paper.counts)
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model.answers(paper.pixels[rows].to(device), segments, starts, dtype)
        wanted = labels(segments, starts, counts)
        exact = ((logits.argmax(-1) == wanted) | (wanted == -100)).all(-1)[:, 0].tolist()
        for kind, correct in zip(paper.kinds[rows], exact, strict=True):
            right[kind].append(correct)
    shares = {kind: sum(found) / len(found) for kind, found in right.items()}
    everything = [correct for found in right.values() for correct in found]
    return {"all": sum(everything) / len(everything), **shares}


@torch.no_grad()
def recognised(
    model: BatchedLance,
    autoencoder: Any,
    texts: Texts,
    samples: list[Captioned],
    sampling: Sampling,
    dtype: torch.dtype,
) -> float:
    """Share of prompts whose drawn picture ``recognise`` finds to show the right shape in the right colour."""
    device = model.latent_rows.device
    cut = [texts.caption(sample.prompt) for sample in samples]
    ids = torch.from_numpy(np.stack([found for found, _ in cut])).long().to(device)
    lengths = torch.tensor([length for _, length in cut], device=device)
    count = len(samples)
    noise = torch.randn(1, 36, 48, generator=torch.Generator().manual_seed(42)).to(device)
    x = noise.expand(count, -1, -1).clone()
    no, yes = (torch.full((count,), flag, device=device) for flag in (False, True))
    for moment, step in zip(*(part.tolist() for part in sampling.schedule()), strict=True):
        times = torch.full((count,), moment, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            v = model.velocity(Captions(ids, lengths, no, no), x, times, dtype).float()
            if sampling.guided(moment):
                plain = model.velocity(Captions(ids, lengths, yes, yes), x, times, dtype).float()
                v = torch.stack([guide(c, u, sampling) for c, u in zip(v, plain, strict=True)])
        x = x - v * step
    pictures = paint(autoencoder, x).numpy()
    found = [recognise(Image.fromarray(picture)) for picture in pictures]
    return sum((s.shape, s.colour) == f for s, f in zip(samples, found, strict=True)) / count


def prompts(count: int) -> list[Captioned]:
    """Captioned drawings for ``recognised``, neither trained on nor in a suite."""
    return [caption(_FIRST + index) for index in range(count)]
