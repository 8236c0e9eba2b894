"""How fast and how large a loaded Lance runs: tokens per second, seconds per picture, bytes held.

``python -m core.runtime.benchmark`` measures the released sizes with random weights made on the device; speed does not
depend on their values.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from core.checkpoints.describe import DEFAULTS
from core.demo import CHECKPOINT
from core.lance.config import LanceConfig
from core.lance.generation import drawing, start_noise
from core.lance.loading import LoadReport, Pipeline, empty_lance, load_tokenizer, put
from core.lance.sampler import Sampling, sample
from core.runtime.engine import Engine

RELEASED = LanceConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_layers=36,
    num_heads=16,
    num_kv_heads=2,
    head_dim=128,
    mrope_section=(16, 24, 24),
    vision={
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_channels": 3,
        "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    },
)  # fmt: skip
"""Sizes of the released Lance_3B."""

CAPTION = (
    "A wooden sailing boat on a calm lake at dawn, mist over the water, mountains behind, soft warm light."
)


@dataclass(frozen=True)
class Measurement:
    """One figure with its unit and what it was taken under."""

    name: str
    value: float
    unit: str
    conditions: str


def random_pipeline(config: LanceConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Pipeline:
    """A Lance of random weights made on the device, with the embedded checkpoint's tokenizer and an engine."""
    model = empty_lance(config)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        tensor = torch.empty(parameter.shape, device=device, dtype=dtype)
        if "norm" in name:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, 0.02, generator=generator)
        put(model, name, tensor)
    for name, buffer in list(model.named_buffers()):
        path, _, leaf = name.rpartition(".")
        fresh = torch.empty(buffer.shape, dtype=torch.float32, device=device)
        model.get_submodule(path).register_buffer(leaf, fresh, persistent=False)
    model.reset_buffers()
    tokenizer = load_tokenizer(CHECKPOINT)
    pipeline = Pipeline(model, tokenizer, Path("random"), dtype, dict(DEFAULTS), LoadReport([], [], []))
    pipeline.engine = Engine(model)
    return pipeline


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
def decode_rate(pipeline: Pipeline, context: int = 512, tokens: int = 128) -> Measurement:
    """Greedy tokens per second at batch 1 behind ``context`` rows, each token read back as a caller would."""
    assert pipeline.engine is not None
    vocabulary = len(pipeline.tokenizer)

    def run() -> None:
        cache = pipeline.engine.new_cache(context + tokens) if pipeline.engine else None
        assert cache is not None and pipeline.engine is not None
        cache.advance(context)
        steps = pipeline.engine.decode(cache, 1, context, vocabulary)
        for _ in range(tokens):
            next(steps)

    seconds = timed(run, pipeline.device, 3)
    return Measurement("decode", tokens / seconds, "tokens/s", f"batch 1, context {context}, {tokens} tokens")


@torch.inference_mode()
def picture_time(pipeline: Pipeline, side: int = 768, num_steps: int = 30) -> Measurement:
    """Seconds of the denoising loop of one picture with guidance, its contexts filled before."""
    assert pipeline.engine is not None
    reader = drawing(pipeline, CAPTION, side, side)
    noise = start_noise(len(reader.positions[0]) - 2, 0).to(pipeline.device)
    velocities = pipeline.engine.velocities(reader)
    sampling = Sampling(num_steps=num_steps)
    seconds = timed(lambda: sample(noise, velocities, sampling), pipeline.device, 2)
    return Measurement("t2i", seconds, "s", f"{side} x {side}, {num_steps} steps, CFG, denoising loop")


def peak_memory(device: torch.device) -> Measurement | None:
    """The most bytes the device's allocator has held, in GB; None where nothing counts them."""
    if device.type != "cuda":
        return None
    return Measurement(
        "peak memory", torch.cuda.max_memory_allocated(device) / 1e9, "GB", "allocated by torch"
    )


def main() -> int:
    """Measure the released sizes and print one JSON line per figure."""
    if not torch.cuda.is_available():
        print("core.runtime.benchmark needs a CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    pipeline = random_pipeline(RELEASED, device, torch.bfloat16)
    for measure in (decode_rate, picture_time):
        print(json.dumps(asdict(measure(pipeline))), flush=True)
    peak = peak_memory(device)
    assert peak is not None
    print(json.dumps({**asdict(peak), "device": torch.cuda.get_device_name(device)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
