"""What the released size takes, from its file to its outputs: ``python -m core.runtime.full_size``.

A float32 checkpoint of the released sizes is written with random weights and loaded as a user's would be, tensor by
tensor; then come questions about pictures, about a clip of six seconds, and a generated clip. Time and memory do not
depend on the weights' values.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from core.checkpoints.random import plan, write_random
from core.checkpoints.sizes import SIZES
from core.evaluation import suites
from core.host_memory import HostMemory
from core.lance.config import LanceConfig
from core.lance.loading import Pipeline
from core.lance.requests import Request
from core.lance.sampler import Sampling
from core.lance.tasks import answer_request, generate, prepare
from core.lance.video import CLIP_FPS, Clip, frame_indices
from core.runtime.benchmark import CAPTION, Measurement, synchronized
from core.runtime.loading import load_model

VIDEO = (480, 848, 49)
"""Height, width and frames of the generated clip."""

SOURCE = (480, 854)
"""Height and width of the clip that is asked about."""


def linear_flops(config: LanceConfig) -> int:
    """Floating point operations of one token through the linears of its expert in all layers."""
    width = config.num_heads * config.head_dim
    narrow = config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * width + 2 * narrow + 3 * config.intermediate_size)
    return 2 * layer * config.num_layers


def denoising_flops(config: LanceConfig, tokens: int, context: int, passes: int) -> int:
    """Operations of ``passes`` denoising passes over ``tokens`` latents behind ``context`` rows."""
    attention = 4 * tokens * (tokens + context) * config.num_heads * config.head_dim * config.num_layers
    return passes * (tokens * linear_flops(config) + attention)


def moving_clip(height: int, width: int, seconds: int = 6) -> Clip:
    """A clip of ``seconds`` of a square that crosses the picture, sampled as a file's frames are."""
    total = seconds * CLIP_FPS
    indices = frame_indices(total, CLIP_FPS)
    frames = []
    for index in indices:
        frame = Image.new("RGB", (width, height), (90, 120, 160))
        frame.paste(
            (220, 60, 40), (index * (width - 100) // total, 150, index * (width - 100) // total + 100, 250)
        )
        frames.append(frame)
    return Clip(frames, indices, total, CLIP_FPS)


@contextmanager
def taken(name: str, conditions: str, device: torch.device) -> Iterator[list[Measurement]]:
    """Seconds, and the most memory held on the device and on the host (above the page cache), of what is done inside.

    The list may be added to; it is printed when all is done, a JSON line a figure.
    """
    torch.cuda.reset_peak_memory_stats(device)
    found: list[Measurement] = []
    with HostMemory() as host:
        start = synchronized(device)
        yield found
        seconds = synchronized(device) - start
    found[:0] = [
        Measurement(name, seconds, "s", conditions),
        Measurement(
            f"{name}: device peak", torch.cuda.max_memory_allocated(device) / 1e9, "GB", "torch's allocator"
        ),
        Measurement(
            f"{name}: host peak",
            host.peak / 1e9,
            "GB",
            "anonymous memory, interpreter and libraries included",
        ),
        Measurement(f"{name}: host before", host.start / 1e9, "GB", "anonymous memory"),
    ]
    for measurement in found:
        print(json.dumps(asdict(measurement)), flush=True)


def ask(pipeline: Pipeline, suite: Path | None, tokens: int) -> None:
    """Questions about the pictures of ``suite``, if there is one, and about a clip."""
    if suite is not None:
        samples = suites.load(str(suite), task="x2t_image").samples
        for _ in range(2):  # the first round captures graphs
            with taken("x2t_image", f"{len(samples)} samples, {tokens} tokens each", pipeline.device):
                for sample in samples:
                    request = Request("x2t_image", sample.question, tuple(sample.visuals()))
                    answer_request(pipeline, request, tokens)
    clip = moving_clip(*SOURCE)
    for _ in range(2):
        with taken(
            "x2t_video", f"{len(clip.frames)} frames of {SOURCE}, {tokens} tokens", pipeline.device
        ) as found:
            request = Request("x2t_video", "What happens in the video?", (clip,))
            answer = answer_request(pipeline, request, tokens)
            found.append(Measurement("x2t_video: prompt", answer.prompt_tokens, "tokens", ""))


def film(pipeline: Pipeline, steps: int) -> None:
    """A generated clip: the denoising loop and the decoding apart."""
    height, width, frames = VIDEO
    device = pipeline.device
    request = Request("t2v", CAPTION, height=height, width=width, num_frames=frames)
    with taken(
        "t2v", f"{height} x {width} x {frames}, {steps} steps, CFG, decoding included", device
    ) as found:
        scene = prepare(pipeline, request)
        sampling = Sampling(num_steps=steps)
        marks = [synchronized(device)]
        generate(
            pipeline, scene, sampling, progress=lambda done, total, what: marks.append(synchronized(device))
        )
        loop = marks[steps] - marks[0]
        tokens = scene.grid[0] * scene.grid[1] * scene.grid[2]
        passes = sum(2 if sampling.guided(time) else 1 for time in sampling.schedule()[0].tolist())
        flops = denoising_flops(pipeline.config, tokens, scene.drawing.conditional.cache.length, passes)
        found += [
            Measurement("t2v: denoising loop", loop, "s", f"{tokens} latents, {passes} passes"),
            Measurement("t2v: operations", flops / 1e15, "PFLOP", "linears and attention"),
            Measurement("t2v: rate", flops / loop / 1e12, "TFLOP/s", "the first step's setup included"),
        ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print one JSON line a figure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, help="where to write the checkpoint; deleted afterwards")
    options.add_argument("--suite", type=Path, help="questions in one of Lance's example files")
    options.add_argument("--size", choices=sorted(SIZES), default="3b")
    options.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    options.add_argument("--steps", type=int, default=30, help="denoising steps of the clip")
    given = options.parse_args(arguments)
    if not torch.cuda.is_available():
        print("core.runtime.full_size needs a CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    torch.zeros(1, device=device)  # the context's memory is not the load's
    parent = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        start = time.perf_counter()
        folder = write_random(parent / "checkpoint", plan(SIZES[given.size]))
        size = (folder / "model.safetensors").stat().st_size / 1e9
        print(f"{size:.1f} GB of float32 written in {time.perf_counter() - start:.0f} s", flush=True)
        with taken("load", f"{size:.1f} GB of float32 and the vision tower, to bfloat16", device):
            pipeline = load_model(folder, device, torch.bfloat16)
        ask(pipeline, given.suite, given.tokens)
        film(pipeline, given.steps)
    finally:
        shutil.rmtree(parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
