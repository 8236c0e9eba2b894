"""Checkpoints of the full layout from random weights, for tests and for machines without the released files.

Written tensor by tensor, each in pieces, so a 28 GB checkpoint needs a few hundred megabytes of memory. Values depend
only on the seed and a tensor's name: not on the layout, the sharding, or the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy
import torch

from core.checkpoints.describe import CONFIG_FILE, OWN_FILE, TOKENIZER_FILES
from core.checkpoints.resolve import VISION_FOLDER
from core.checkpoints.sizes import Sizes
from core.checkpoints.source import INDEX_FILE
from core.checkpoints.stream import Slot, header, write_stream
from core.demo import CHECKPOINT
from core.errors import CheckpointError, UsageError
from core.files import check_room, replacing_folder, write_text
from core.lance.config import MAX_LATENT_FRAMES, MAX_LATENT_SIDE, LanceConfig
from core.lance.latents import latent_position_rows
from core.lance.loading import VISION_PREFIX, empty_lance
from core.lance.position_table import POSITION_TABLE
from core.lance.vae import build_autoencoder, wan_name

MODEL_FOLDER = "Lance_Random"
VAE_FILE = "Wan2.2_VAE.safetensors"
"""The released VAE is a pickle, which cannot be written piece by piece; the loader takes either."""

PIECE = 1 << 22
"""Values drawn at a time."""

Layout = Literal["image", "video"]
Dtype = Literal["F32", "BF16"]


@dataclass(frozen=True)
class Plan:
    """What a checkpoint will hold, before anything is written."""

    sizes: Sizes
    files: dict[str, list[Slot]]
    """Tensors by file, paths below the checkpoint's folder."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(len(header(slots)) + sum(slot.nbytes for slot in slots) for slots in self.files.values())


def plan(
    sizes: Sizes,
    *,
    layout: Layout = "image",
    dtype: Dtype = "F32",
    bundled_vision: bool | None = None,
    shard_bytes: int | None = None,
) -> Plan:
    """Lay out a checkpoint as upstream lays out its downloads.

    Args:
        layout: ``image``: position table of one frame, vision tower in its own file; ``video``: 31 frames, vision
            tower in the model's file.
        dtype: how every tensor is stored; upstream stores F32.
        bundled_vision: where the vision tower goes, if not where the layout has it.
        shard_bytes: split the model's file so that no part but one of a single tensor exceeds this.
    """
    config = LanceConfig.from_dict(sizes.llm, sizes.vision)
    bundled = layout == "video" if bundled_vision is None else bundled_vision
    model: list[Slot] = []
    vision: list[Slot] = []
    for name, parameter in empty_lance(config).named_parameters():
        shape = tuple(parameter.shape)
        if name.startswith(VISION_PREFIX) and not bundled:
            vision.append(Slot(name.removeprefix(VISION_PREFIX), dtype, shape))
        else:
            model.append(Slot(name, dtype, shape))
    frames = MAX_LATENT_FRAMES if layout == "video" else 1
    model.append(Slot(POSITION_TABLE, dtype, (frames * MAX_LATENT_SIDE**2, config.hidden_size)))
    with torch.device("meta"):
        autoencoder = build_autoencoder(*sizes.vae)
    vae = [Slot(wan_name(name), dtype, tuple(t.shape)) for name, t in autoencoder.state_dict().items()]
    files = {f"{MODEL_FOLDER}/{name}": slots for name, slots in _shards(model, shard_bytes).items()}
    if vision:
        files[f"{VISION_FOLDER}/vit.safetensors"] = vision
    return Plan(sizes, {**files, VAE_FILE: vae})


def _shards(slots: Sequence[Slot], limit: int | None) -> dict[str, list[Slot]]:
    """The model's tensors by file name."""
    if limit is None:
        return {"model.safetensors": list(slots)}
    parts: list[list[Slot]] = [[]]
    for slot in slots:
        if parts[-1] and sum(other.nbytes for other in parts[-1]) + slot.nbytes > limit:
            parts.append([])
        parts[-1].append(slot)
    return {f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts)}


def spread(name: str, shape: tuple[int, ...], layers: int) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values, chosen so that activations stay of order one.

    Norms are near one; linears and convolutions preserve variance; what is added to a residual stream is damped by the
    number of additions (as GPT-2 is initialised).
    """
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return 1.0, 0.05
    if len(shape) == 1:
        return 0.0, 0.02
    if name.endswith("embed_tokens.weight"):
        return 0.0, 1.0
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    if re.search(r"\b(o_proj(_moe_gen)?|down_proj|attn\.proj)\.weight$", name):
        deviation /= math.sqrt(2 * layers)
    return 0.0, deviation


def _encode(values: torch.Tensor, dtype: str) -> bytes:
    """The little-endian bytes of float32 values in ``dtype``."""
    if dtype == "BF16":
        return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return values.numpy().tobytes()


def _drawn(slot: Slot, name: str, seed: int, layers: int, piece: int) -> bytes:
    mean, deviation = spread(name, slot.shape, layers)
    key = int.from_bytes(hashlib.sha256(f"{seed} {name} {piece}".encode()).digest()[:16], "little")
    count = min(PIECE, slot.elements - piece * PIECE)
    values = numpy.random.Generator(numpy.random.SFC64(key)).standard_normal(count, dtype=numpy.float32)
    values *= numpy.float32(deviation)
    values += numpy.float32(mean)
    return _encode(torch.from_numpy(values), slot.dtype)


def _table_piece(slot: Slot, start: int, rows: int) -> bytes:
    """Rows of the fixed latent position table."""
    ids = torch.arange(start, min(start + rows, slot.shape[0]))
    return _encode(latent_position_rows(ids, slot.shape[1], rounded=False), slot.dtype)


def _tasks(slot: Slot, name: str, seed: int, layers: int) -> Iterator[Callable[[], bytes]]:
    if slot.name == POSITION_TABLE:
        rows = max(1, PIECE // slot.shape[1])
        for start in range(0, slot.shape[0], rows):
            yield partial(_table_piece, slot, start, rows)
        return
    for piece in range(-(-slot.elements // PIECE)):
        yield partial(_drawn, slot, name, seed, layers, piece)


def _pieces(pool: ThreadPoolExecutor, ahead: int, tasks: Iterator[Callable[[], bytes]]) -> Iterator[bytes]:
    """The tasks' results in order, at most ``ahead`` of them in memory."""
    waiting: deque[Future[bytes]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def write_random(
    folder: Path,
    planned: Plan,
    *,
    seed: int = 0,
    name: str = "lance-random",
    tokenizer: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a planned checkpoint to ``folder``, which appears whole or not at all.

    Args:
        name: what the checkpoint is called.
        tokenizer: folder to copy the tokenizer from; None takes the embedded checkpoint's, whose ids fit any size.
        progress: called with (bytes written, bytes in all).

    Returns:
        The model's folder below ``folder``.

    Raises:
        UsageError: ``folder`` exists and holds something.
        CheckpointError: a file of the tokenizer is missing.
        WorkbenchError: not enough room on the disk, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not empty; choose another place")
    words = tokenizer or CHECKPOINT
    for file in TOKENIZER_FILES:
        if not (words / file).is_file():
            raise CheckpointError(f"{words}: the tokenizer's {file} is missing; name another folder")
    check_room(folder, planned.nbytes)
    total, done = planned.nbytes, 0
    threads = min(8, os.cpu_count() or 1)
    layers = int(planned.sizes.llm["num_hidden_layers"])
    with replacing_folder(folder) as unfinished, ThreadPoolExecutor(threads) as pool:
        for file, slots in planned.files.items():
            prefix = VISION_PREFIX if file.startswith(VISION_FOLDER) else ""

            def pieces(slot: Slot, prefix: str = prefix) -> Iterator[bytes]:
                nonlocal done
                for piece in _pieces(pool, 2 * threads, _tasks(slot, prefix + slot.name, seed, layers)):
                    yield piece
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)

            path = unfinished / file
            path.parent.mkdir(exist_ok=True)
            write_stream(path, slots, pieces)
        _write_rest(unfinished, planned, words, name, seed)
    return folder / MODEL_FOLDER


def _write_rest(folder: Path, planned: Plan, tokenizer: Path, name: str, seed: int) -> None:
    """Everything that is no tensor: configurations, tokenizer, shard index, and what this checkpoint is."""
    model = folder / MODEL_FOLDER
    for file in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / file, model / file)
    shards = {
        Path(file).name: slots for file, slots in planned.files.items() if file.startswith(MODEL_FOLDER)
    }
    if "model.safetensors" not in shards:
        size = sum(slot.nbytes for slots in shards.values() for slot in slots)
        places = {slot.name: file for file, slots in shards.items() for slot in slots}
        _write_json(model / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": places})
    _write_json(model / CONFIG_FILE, planned.sizes.llm)
    _write_json(folder / VISION_FOLDER / "config.json", planned.sizes.vision)
    record: dict[str, Any] = {"name": name, "random_seed": seed}
    if planned.sizes.defaults:
        record["defaults"] = planned.sizes.defaults
    _write_json(model / OWN_FILE, record)


def _write_json(path: Path, body: dict[str, Any]) -> None:
    write_text(path, json.dumps(body, indent=1) + "\n")
