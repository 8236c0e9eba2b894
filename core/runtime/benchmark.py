"""How fast and how large a loaded Lance runs: tokens per second, seconds per picture, bytes held.

``python -m core.runtime.benchmark`` measures the released sizes in several formats, with random weights made on the
device; ``core.runtime.bench_job`` also measures checkpoints and variants.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from core.lance.config import LanceConfig
from core.lance.generation import drawing, start_noise
from core.lance.loading import Pipeline
from core.lance.sampler import Sampling, sample
from core.quantization.scheme import FP8, NVFP4, Scheme
from core.runtime.engine import Engine
from core.runtime.loading import settle
from core.runtime.memory import held_bytes
from core.runtime.random_weights import RELEASED, random_pipeline

CAPTION = (
    "A wooden sailing boat on a calm lake at dawn, mist over the water, mountains behind, soft warm light."
)

INT8 = Scheme(8, 64, True)

INT4 = Scheme(4, 64, False)

FORMATS: dict[str, tuple[Scheme | None, Scheme | None, Scheme | None]] = {
    "bf16": (None, None, None),
    "int4-g64": (INT4, None, None),
    "int4-g64+int8-head": (INT4, INT8, None),
    "nvfp4": (NVFP4, None, None),
    "int4-g64+fp8-gen": (INT4, None, FP8),
}
"""Schemes of target linears, of the head, and of the generation expert if it has its own, by the name of the figure."""


@dataclass(frozen=True)
class Measurement:
    """One figure with its unit and what it was taken under."""

    name: str
    value: float
    unit: str
    conditions: str


def synchronized(device: torch.device) -> float:
    """The clock in seconds once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of ``run`` over ``repeats`` calls after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        start = synchronized(device)
        run()
        taken.append(synchronized(device) - start)
    return statistics.median(taken)


@torch.inference_mode()
def decode_rate(pipeline: Pipeline, context: int = 512, tokens: int = 128, repeats: int = 3) -> Measurement:
    """Greedy tokens per second at batch 1 behind ``context`` rows, each token read back as a caller would."""
    engine = pipeline.engine or Engine(pipeline.model)
    vocabulary = len(pipeline.tokenizer)

    def run() -> None:
        cache = engine.new_cache(context + tokens)
        cache.advance(context)
        steps = engine.decode(cache, 1, context, vocabulary)
        for _ in range(tokens):
            next(steps)

    seconds = timed(run, pipeline.device, repeats)
    return Measurement("decode", tokens / seconds, "tokens/s", f"batch 1, context {context}, {tokens} tokens")


@torch.inference_mode()
def picture_time(pipeline: Pipeline, side: int = 768, num_steps: int = 30, repeats: int = 2) -> Measurement:
    """Seconds of the denoising loop of one picture with guidance, its contexts filled before."""
    engine = pipeline.engine or Engine(pipeline.model)
    reader = drawing(pipeline, CAPTION, side, side)
    noise = start_noise(len(reader.positions[0]) - 2, 0).to(pipeline.device)
    velocities = engine.velocities(reader)
    sampling = Sampling(num_steps=num_steps)
    seconds = timed(lambda: sample(noise, velocities, sampling), pipeline.device, repeats)
    return Measurement("t2i", seconds, "s", f"{side} x {side}, {num_steps} steps, CFG, denoising loop")


def peak_memory(device: torch.device, conditions: str) -> Measurement | None:
    """The most bytes that torch has allocated since it was last asked, in GB; None where nothing counts them."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return Measurement("peak memory", peak, "GB", conditions)


def measure(
    config: LanceConfig, name: str, device: torch.device, *, side: int = 768, num_steps: int = 30
) -> Iterator[Measurement]:
    """Figures of a Lance of these sizes and random weights in the format ``name`` of ``FORMATS``, as they are
    taken.
    """
    scheme, head, gen = FORMATS[name]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pipeline = random_pipeline(config, device, torch.bfloat16, scheme, head, gen)
    stored = held_bytes(pipeline.model)
    start = synchronized(device)
    pipeline.engine = Engine(pipeline.model)
    settle(pipeline.model, device, torch.bfloat16)
    seconds = synchronized(device) - start
    held = held_bytes(pipeline.model)
    yield Measurement("repacking", seconds, "s", "fused and laid out for the kernels")
    yield Measurement("stored weights", stored / 1e9, "GB", "as in the files, vision tower included")
    yield Measurement("weights", held / 1e9, "GB", "as they are held")
    found = [peak_memory(device, "making and laying out")]
    yield decode_rate(pipeline)
    found.append(peak_memory(device, "decoding, cache included"))
    yield picture_time(pipeline, side, num_steps)
    found.append(peak_memory(device, f"denoising {side} x {side}"))
    yield from (figure for figure in found if figure is not None)


def free(device: torch.device) -> None:
    """Give back what a model held that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the released sizes and print one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--output", type=Path, help="append the lines to this file too")
    parsed = parser.parse_args(arguments)
    names = parsed.formats.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"format {unknown[0]!r}: unknown; known are {', '.join(FORMATS)}")
    if not torch.cuda.is_available():
        print("core.runtime.benchmark needs a CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    for name in names:
        begin = time.perf_counter()
        for figure in measure(RELEASED, name, device):
            row = {"format": name, **asdict(figure), "device": torch.cuda.get_device_name(device)}
            line = json.dumps(row | {"elapsed": round(time.perf_counter() - begin, 1)})
            print(line, flush=True)
            if parsed.output is not None:
                with parsed.output.open("a") as stream:
                    stream.write(line + "\n")
        free(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
