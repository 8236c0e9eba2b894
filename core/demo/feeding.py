"""Drawing training pictures on all cores while the accelerator trains.

Workers draw into slots of one anonymous shared memory map; the trainer moves filled slots into a ring on the device, so
pictures are always drawn anew and every one is seen a few times before it is overwritten.
"""

from __future__ import annotations

import mmap
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.demo.canvas import SIDE, Question, seeded
from core.demo.captions import CAPTION_SIDE, caption
from core.demo.drawing import HELD_OUT, scene
from core.demo.texts import CAPTION, SEGMENT, Texts

CHUNK = 128
"""Pictures in one slot."""

ASKED = 8
"""Questions kept of each picture."""

SHARES = {"bar": 8, "pie": 8, "plate": 2, "sign": 1, "count": 1, "shape": 5}
"""How often each family is drawn, of 25."""

WEIGHTS = {
    "bar-value": 4, "bar-colour": 3, "bar-compare": 4, "bar-legend": 3, "bar-steps": 3, "bar-named": 2,
    "pie-value": 4, "pie-colour": 3, "pie-legend": 3, "pie-steps": 3, "pie-named": 2,
    "shape-place": 4, "shape-beside": 4, "shape-list": 3, "shape-at": 3,
}  # fmt: skip
"""How often a kind is asked beside the others of its family, 1 where not named: what takes several steps is learned
last."""

_PIXELS = CHUNK * SIDE * SIDE * 3
_SEGMENTS = CHUNK * ASKED * SEGMENT * 2
_MARKS = CHUNK * ASKED
_SLOT = _PIXELS + _SEGMENTS + 2 * _MARKS


@dataclass
class Batch:
    """Pictures with questions: pixels uint8 [B, 224, 224, 3], ids [B, Q, SEGMENT], answer starts and counts [B, Q]."""

    pixels: torch.Tensor
    segments: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor


def _views(memory: mmap.mmap, slot: int) -> tuple[Any, Any, Any, Any]:
    at = slot * _SLOT
    pixels = np.frombuffer(memory, np.uint8, _PIXELS, at).reshape(CHUNK, SIDE, SIDE, 3)
    segments = np.frombuffer(memory, np.int16, _SEGMENTS // 2, at + _PIXELS).reshape(CHUNK, ASKED, SEGMENT)
    starts = np.frombuffer(memory, np.uint8, _MARKS, at + _PIXELS + _SEGMENTS).reshape(CHUNK, ASKED)
    counts = np.frombuffer(memory, np.uint8, _MARKS, at + _PIXELS + _SEGMENTS + _MARKS).reshape(CHUNK, ASKED)
    return pixels, segments, starts, counts


def _work(
    memory: mmap.mmap, free: Any, filled: Any, worker: int, workers: int, seed: int, tokenizer: Path
) -> None:
    texts = Texts(tokenizer)
    families = [family for family, share in SHARES.items() for _ in range(share)]
    number = worker
    while (slot := free.get()) is not None:
        rng = seeded("chunk", seed, number)
        pixels, segments, starts, counts = _views(memory, slot)
        for row in range(CHUNK):
            drawn = scene(rng.choice(families), rng.randrange(HELD_OUT))
            pixels[row] = np.asarray(drawn.image)
            # A picture has many simple questions and few hard ones, so the kind is drawn before the question.
            by_kind: dict[str, list[Question]] = {}
            for question in (*drawn.questions, *drawn.lessons):
                by_kind.setdefault(question.kind, []).append(question)
            weights = [WEIGHTS.get(kind, 1) for kind in by_kind]
            for place, kind in enumerate(rng.choices(list(by_kind), weights, k=ASKED)):
                question = rng.choice(by_kind[kind])
                segments[row, place], starts[row, place], counts[row, place] = texts.segment(question)
        filled.put(slot)
        number += workers


class Feed:
    """Worker processes and the ring of pictures they fill on ``device``. Start it before CUDA is used."""

    def __init__(self, tokenizer: Path, workers: int, slots: int, seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self._memory = mmap.mmap(-1, slots * _SLOT)
        self._free: Any = context.Queue()
        self._filled: Any = context.Queue()
        for slot in range(slots):
            self._free.put(slot)
        self._workers = [
            context.Process(
                target=_work,
                args=(self._memory, self._free, self._filled, k, workers, seed, tokenizer),
                daemon=True,
            )
            for k in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        self.drawn = 0

    def open(self, capacity: int, device: torch.device) -> None:
        """Allocate a ring for ``capacity`` pictures (rounded to whole slots) on ``device``."""
        self._device = device
        self._chunks = max(1, capacity // CHUNK)
        rows = self._chunks * CHUNK
        self._pixels = torch.empty(rows, SIDE, SIDE, 3, dtype=torch.uint8, device=device)
        self._segments = torch.empty(rows, ASKED, SEGMENT, dtype=torch.int16, device=device)
        self._starts = torch.empty(rows, ASKED, dtype=torch.uint8, device=device)
        self._counts = torch.empty(rows, ASKED, dtype=torch.uint8, device=device)
        self._moving: list[tuple[int, torch.cuda.Event | None]] = []
        if device.type == "cuda":
            # Pinned, the map's slots reach the device without holding up the trainer.
            whole = np.frombuffer(self._memory, np.uint8)
            code = torch.cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0)
            print(f"pinning the drawing slots: {code}", flush=True)

    @property
    def ready(self) -> int:
        """Pictures that can be drawn from now."""
        return min(self.drawn, self._chunks * CHUNK)

    def pump(self, wait: bool = False) -> None:
        """Move filled slots into the ring; with ``wait`` at least one."""
        for slot, event in list(self._moving):
            if event is None or event.query():
                self._moving.remove((slot, event))
                self._free.put(slot)
        while wait or not self._filled.empty():
            slot = self._filled.get()
            wait = False
            at = self.drawn // CHUNK % self._chunks * CHUNK
            rows = slice(at, at + CHUNK)
            ring = (self._pixels, self._segments, self._starts, self._counts)
            for target, source in zip(ring, _views(self._memory, slot), strict=True):
                target[rows].copy_(torch.from_numpy(source), non_blocking=True)
            event = None
            if self._device.type == "cuda":
                event = torch.cuda.Event()
                event.record()
            self._moving.append((slot, event))
            self.drawn += CHUNK

    def batch(self, size: int, questions: int, generator: torch.Generator) -> Batch:
        """A random batch of the ring, ``questions`` different questions to each picture."""
        rows = torch.randint(self.ready, (size,), generator=generator, device=self._device)
        order = torch.rand(size, ASKED, generator=generator, device=self._device).argsort(dim=1)[
            :, :questions
        ]
        return Batch(
            self._pixels[rows],
            self._segments[rows[:, None], order].long(),
            self._starts[rows[:, None], order].long(),
            self._counts[rows[:, None], order].long(),
        )

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.terminate()


@dataclass
class Gallery:
    """Captioned pictures: pixels uint8 [N, 96, 96, 3], caption ids int16 [N, CAPTION], their lengths [N]."""

    pixels: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor


def _captioned(task: tuple[int, int, Path]) -> tuple[Any, Any, Any]:
    first, count, tokenizer = task
    texts = Texts(tokenizer)
    pixels = np.empty((count, CAPTION_SIDE, CAPTION_SIDE, 3), np.uint8)
    ids, lengths = np.empty((count, CAPTION), np.int16), np.empty(count, np.int64)
    for row in range(count):
        drawn = caption(first + row)
        pixels[row] = np.asarray(drawn.image)
        ids[row], lengths[row] = texts.caption(drawn.prompt)
    return pixels, ids, lengths


def gallery(tokenizer: Path, count: int, workers: int) -> Gallery:
    """Draw the captioned pictures of seeds 0 to ``count`` on ``workers`` processes. Call it before CUDA is used."""
    share = max(1, count // (4 * workers))
    tasks = [(first, min(share, count - first), tokenizer) for first in range(0, count, share)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = pool.map(_captioned, tasks)
    pixels, ids, lengths = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    return Gallery(pixels, ids, lengths)
