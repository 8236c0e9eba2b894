"""The job of kind ``bench``: the kernels beside others', and checkpoints, variants or random weights end to end."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from core.demo import CHECKPOINT
from core.errors import Cancelled, UsageError
from core.evaluation.subject import Subject, open_subjects
from core.quantization.scheme import Scheme
from core.runtime import benchmark
from core.runtime.benchmark import FORMATS, Measurement
from core.runtime.check import enforcement
from core.runtime.device import pick_device, pick_dtype
from core.runtime.fp8_linear import fp8_path
from core.runtime.loading import load_model
from core.runtime.memory import free_bytes, held_bytes
from core.runtime.random_weights import RELEASED
from core.store import manifest
from core.store.measurements import KEY, figure
from kernels.fp8 import no_units

if TYPE_CHECKING:
    from core.jobs.context import JobContext
    from core.lance.loading import Pipeline

PARTS = ("kernels", "end-to-end")
RANDOM = "lance-3b-random"
RANDOM_BYTES = 20 << 30
"""Free memory from which the released size fits in bfloat16, with what drawing at 768 x 768 adds."""

Figure = dict[str, Any]


@dataclass
class _Run:
    """One run to record: what it is of, and how its figures are taken."""

    fields: dict[str, Any]
    take: Callable[[], Iterator[Figure]]
    fingerprints: dict[str, str | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known only once it runs, for the manifest."""


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Benchmark as ``spec`` says; ``{"runs": [ids], "device": its name}``.

    A spec has ``what`` (of ``PARTS``; all by default), ``checkpoints`` (names or paths to run end to end; without any
    the released size with random weights on a GPU, the embedded checkpoint elsewhere), ``rows`` (of activations, for
    the kernels), ``device`` and ``dtype``.

    Raises:
        UsageError: an unknown name, part or device, or a GPU without Triton for the kernels.
        Cancelled: asked to stop; runs that are finished stay.
    """
    device = pick_device(spec.get("device") or "auto")
    dtype = pick_dtype(spec.get("dtype") or "auto", device)
    parts = list(spec.get("what") or PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"bench {unknown[0]!r}: unknown part; known are {', '.join(PARTS)}")
    name = device_name(device)
    plans: list[_Run] = []
    if "kernels" in parts:
        plans.append(_kernels(device, spec.get("rows")))
    if "end-to-end" in parts:
        plans += _end_to_end(spec.get("checkpoints") or [], device, dtype, context)
    context.log(f"benchmark on {name}: " + ", ".join(str(plan.fields["checkpoint"]) for plan in plans))
    if device.type == "cpu":
        context.log(
            "no GPU: torch's own products beside the reference on two linears, and a checkpoint end to end"
        )
    made = []
    for number, plan in enumerate(plans):
        context.progress(
            number, len(plans), "runs", str(plan.fields.get("variant") or plan.fields["checkpoint"])
        )
        made.append(_record(plan, name, command(spec), device, context))
    context.progress(len(plans), len(plans), "runs", "")
    return {"runs": made, "device": name}


def device_name(device: torch.device) -> str:
    """What a person calls the device, for tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{manifest.hardware()['cpu']}, {torch.get_num_threads()} threads"


def _record(plan: _Run, name: str, words: list[str], device: torch.device, context: JobContext) -> int:
    """Take a plan's figures and keep them; the id of the run, which is closed however it ends."""
    facts = manifest.collect(device=str(device), seeds={"weights": 0}, **plan.fingerprints)
    facts["command_line"] = words
    run_id = context.store.start_run(
        kind="bench", job_id=context.job_id, device=name, manifest=facts, **plan.fields
    )
    begin = time.monotonic()
    figures: list[Figure] = []
    state = "failed"
    try:
        for item in plan.take():
            figures.append(item)
            rows = "" if item["rows"] is None else f" M {item['rows']}"
            context.log(
                f"{item['subject']}{rows} {item['implementation']}: {item['value']:.4g} {item['unit']} {item['how']}"
            )
            context.check()
        state = "succeeded"
    except (Cancelled, KeyboardInterrupt):
        state = "cancelled"
        raise
    finally:
        context.store.set_manifest(run_id, facts | plan.facts | {KEY: figures})
        context.store.update_run(run_id, samples=len(figures))
        context.store.finish_run(run_id, state, time.monotonic() - begin)
    return run_id


def command(spec: dict[str, Any]) -> list[str]:
    """What a person types for this spec; the job's own command is its worker's."""
    words = ["lance-workbench", "bench"]
    for key, option in (("what", "--what"), ("checkpoints", "--checkpoint")):
        for value in spec.get(key) or ():
            words += [option, str(value)]
    if spec.get("rows"):
        words += ["--rows", ",".join(map(str, spec["rows"]))]
    for key in ("device", "dtype"):
        if spec.get(key) not in (None, "auto"):
            words += [f"--{key}", str(spec[key])]
    return words


# --- kernels ---------------------------------------------------------------------------------------------------


def _kernels(device: torch.device, rows: Iterable[int] | None) -> _Run:
    ms = [int(m) for m in rows or ()]
    fields = {"checkpoint": "kernels", "suite": "kernels"}
    if device.type == "cpu":
        return _Run(fields, lambda: _on_cpu(ms), facts={"kernel_path": "torch"})
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        raise UsageError(
            f"bench: the kernels need an NVIDIA GPU and Triton, {device} has not both; "
            "pip install 'lance-workbench[triton]', or choose --device cpu or --what end-to-end"
        )
    return _Run(fields, lambda: _on_gpu(ms), facts={"kernel_path": "triton"})


def _on_cpu(ms: list[int]) -> Iterator[Figure]:
    from kernels import cpu_benchmark

    for rows in cpu_benchmark.measure(ms or cpu_benchmark.ROWS):
        base = {m: taken for _, m, name, taken in rows if name == cpu_benchmark.DENSE}
        for linear, m, name, taken in rows:
            yield figure(linear, name, taken, "us", rows=m, against=base[m] / taken)


def _on_gpu(ms: list[int]) -> Iterator[Figure]:
    from kernels import rivals
    from kernels.benchmark import measure
    from kernels.timing import ROWS

    for rows in measure(["int4-g64", "nvfp4"], rivals.available(), ms or ROWS):
        for row in rows:
            yield figure(
                row.linear, row.implementation, row.microseconds, "us", row.how, rows=row.m,
                gigabytes=row.gigabytes, share=row.share, against=row.against_bf16,
            )  # fmt: skip


# --- end to end --------------------------------------------------------------------------------------------------


def _end_to_end(
    names: list[str], device: torch.device, dtype: torch.dtype, context: JobContext
) -> list[_Run]:
    """A run for each checkpoint or variant, or for each format of random weights."""
    free = free_bytes(device)
    if not names and device.type == "cuda":
        if free is None or free >= RANDOM_BYTES:
            return [_random(name, device) for name in FORMATS]
        context.log(
            f"{device} has {free / 1e9:.0f} GB free, the released size takes {RANDOM_BYTES / 1e9:.0f} GB: "
            "the embedded checkpoint runs instead"
        )
    plans = []
    for name in names or [str(CHECKPOINT)]:
        subject = open_subjects(name, context.store, alone=True)[0]
        fields = {
            "checkpoint": subject.checkpoint, "variant": subject.variant, "recipe": subject.recipe,
            "bits": subject.bits, "size_bytes": subject.size_bytes, "suite": "end-to-end",
        }  # fmt: skip
        facts: dict[str, Any] = {}
        take = partial(_loaded, subject, device, dtype, facts)
        plans.append(_Run(fields, take, {"checkpoint": subject.fingerprint}, facts))
    return plans


def _compared(figures: Iterable[Measurement], name: str) -> Iterator[Figure]:
    for item in figures:
        yield figure(item.name, name, item.value, item.unit, item.conditions)


def _random(name: str, device: torch.device) -> _Run:
    scheme, _, gen = FORMATS[name]
    # Both experts have as many weights.
    bits = fmean(_bits(one) for one in (scheme, gen or scheme))
    fields: dict[str, Any] = {"checkpoint": RANDOM, "recipe": name, "bits": bits, "suite": "end-to-end"}
    if scheme is not None:
        fields["variant"] = f"{RANDOM}_{name}"

    def take() -> Iterator[Figure]:
        yield from _compared(benchmark.measure(RELEASED, name, device), name)
        benchmark.free(device)

    path = "torch" if scheme is None else "triton"
    if gen is not None:
        path = " + ".join(sorted((path, fp8_path(device, no_units(device)))))
    return _Run(fields, take, facts={"kernel_path": path})


def _bits(scheme: Scheme | None) -> float:
    """Stored bits of a weight at the released size."""
    shape = (RELEASED.hidden_size, RELEASED.hidden_size)
    return 16.0 if scheme is None else 8 * scheme.nbytes(shape) / math.prod(shape)


def _loaded(
    subject: Subject, device: torch.device, dtype: torch.dtype, facts: dict[str, Any]
) -> Iterator[Figure]:
    """Load time, weights, decoding, drawing and peaks of one checkpoint or variant."""

    def take() -> Iterator[Measurement]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        kind = str(dtype).removeprefix("torch.")
        start = benchmark.synchronized(device)
        pipeline = load_model(subject.path, device, dtype)
        seconds = benchmark.synchronized(device) - start
        running = enforcement(pipeline)
        facts.update(kernel_path=running.kernel_path, enforcement=running.to_json())
        yield Measurement("load", seconds, "s", f"from its files, {kind}, {running.kernel_path}")
        yield Measurement("weights", held_bytes(pipeline.model) / 1e9, "GB", "as they are held")
        yield from _peak(device, "loading")
        yield _decoding(pipeline)
        yield from _peak(device, "decoding, cache included")
        yield _drawing(pipeline)
        yield from _peak(device, "denoising")
        del pipeline
        benchmark.free(device)

    yield from _compared(take(), subject.name)


def _peak(device: torch.device, conditions: str) -> list[Measurement]:
    found = benchmark.peak_memory(device, conditions)
    return [] if found is None else [found]


def _decoding(pipeline: Pipeline) -> Measurement:
    if pipeline.device.type == "cuda":
        return benchmark.decode_rate(pipeline)
    return benchmark.decode_rate(pipeline, context=128, tokens=16, repeats=2)


def _drawing(pipeline: Pipeline) -> Measurement:
    side, steps = int(pipeline.defaults["height"]), int(pipeline.defaults["num_steps"])
    if pipeline.device.type == "cuda":
        return benchmark.picture_time(pipeline, side, steps)
    return benchmark.picture_time(pipeline, side, min(steps, 8), repeats=1)
