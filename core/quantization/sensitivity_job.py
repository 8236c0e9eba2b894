"""The job ``sensitivity``: measure how much a checkpoint suffers from a recipe, and keep the result beside the
database (``sensitivity_results``).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from core.checkpoints.source import TensorSource
from core.evaluation import divergence
from core.evaluation.divergence import Divergence
from core.evaluation.readers import reader_of
from core.evaluation.samples import Settings
from core.files import sha256_text
from core.quantization import sensitivity, sensitivity_samples
from core.quantization import sensitivity_results as results
from core.quantization.fit import check_rows
from core.quantization.inputs import CalibrationInputs, open_streams
from core.quantization.request import Request, look_up
from core.quantization.sensitivity import GroupResult
from core.quantization.sensitivity_report import tables
from core.quantization.sensitivity_samples import PIECES, drawn_samples
from core.runtime.causal_lm import load_text_model
from core.runtime.device import pick_dtype, suit_threads
from core.runtime.loading import load_model
from core.store.export import plain_table
from core.store.manifest import versions

if TYPE_CHECKING:
    from core.jobs.context import JobContext


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Measure as ``spec`` says: step by step, layer by layer and group by group.

    A spec is that of a ``quantize`` job, with ``suites`` to measure on (those of Lance's tasks, or running text for a
    causal LM) and ``limit``, a number of samples of each.

    Raises:
        UsageError: no calibration, or no samples for this checkpoint.
        CheckpointError, DataError: damaged files.
        Cancelled: asked to stop.
    """
    request = look_up(spec, context.store)
    suit_threads(request.info.nbytes, request.device)
    found = measure(request, context, spec.get("suites"), spec.get("limit"), steps=True)
    for title, titles, rows, right in tables(found):
        context.log(f"{title}\n{plain_table(rows, titles, right)}")
    return {
        "sensitivity": found["name"],
        "path": str(results.path_of(context.data_dir, found["name"])),
        "checkpoint": found["checkpoint"],
        "recipe": found["recipe"],
        "steps": found["steps"],
        "seconds": found["seconds"],
    }


def measure(
    request: Request, context: JobContext, names: Sequence[str] | None, limit: int | None, *, steps: bool
) -> dict[str, Any]:
    """Measure and keep the result; ``steps`` also runs the recipe step by step.

    Raises:
        UsageError: no calibration, or no samples for this checkpoint.
    """
    started = time.monotonic()
    info, recipe, layout, device = request.info, request.recipe, request.layout, request.device
    check_rows(recipe, info, request.calibration is not None)
    assert request.calibration is not None
    folder, record = request.calibration
    dtype = pick_dtype("auto", device)
    groups = len(layout.structure.groups())
    total = groups + (len(sensitivity.stages(recipe)) if steps else 0)
    done = 0

    def told(what: str) -> None:
        nonlocal done
        context.progress(done, total, "measurements", what)
        done += 1

    context.log(f"{info.name}: {groups} groups of linears by {recipe.name} on {device}")
    model, divergences, described = _references(request, names, limit, dtype)
    weighed = CalibrationInputs(folder, recipe, request.thin, device)
    with torch.inference_mode():
        by_group = sensitivity.measure_groups(model, layout, recipe, weighed, divergences, told)
    if unknown := sum(all(power is None for power in result.powers.values()) for result in by_group):
        context.log(
            f"{info.name}: no sample reaches {unknown} of {groups} groups, so nothing is known of them and a mixed "
            "recipe leaves them as they are; give a --suite whose samples do"
        )
    found: dict[str, Any] = {
        "format": results.FORMAT,
        "checkpoint": info.name,
        "recipe": recipe.name,
        "calibration": record.name,
        "made_from": made_from(request),
        "measured_on": described,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "versions": versions(),
        "groups": [dataclasses.asdict(result) for result in by_group],
    }
    if steps:
        source = TensorSource.open(info.path)
        tokens = {linear: sum(buckets.values()) for linear, buckets in record.tokens.items()}
        by_step, linears = sensitivity.measure_steps(
            model,
            source,
            layout,
            recipe,
            lambda partial: CalibrationInputs(folder, partial, request.thin, device),
            lambda partial, inputs: open_streams(info.path, folder, partial, inputs, device),
            tokens,
            divergences,
            device,
            told,
        )
        found["steps"] = [dataclasses.asdict(result) for result in by_step]
        found["layers"] = sensitivity.layers(linears)
        found["linears"] = [
            {key: getattr(linear, key) for key in ("linear", "group", "scheme", "weight_sqnr", "output_sqnr")}
            for linear in linears
        ]
    context.progress(total, total, "measurements", "")
    digest = sha256_text(json.dumps([found["made_from"], described], sort_keys=True))[:8]
    found |= {"name": f"{request.name}-{digest}", "seconds": round(time.monotonic() - started, 1)}
    results.write(context.data_dir, found)
    return found


def made_from(request: Request) -> list[str]:
    """Fingerprints of checkpoint, recipe and calibration."""
    assert request.calibration is not None
    return [request.info.fingerprint, request.recipe.fingerprint, request.calibration[1].fingerprint]


def group_results(found: dict[str, Any]) -> list[GroupResult]:
    """The groups of a result."""
    return [
        GroupResult(
            **row
            | {key: {int(bits): value for bits, value in row[key].items()} for key in ("losses", "nbytes")}
        )
        for row in found["groups"]
    ]


def _references(
    request: Request, names: Sequence[str] | None, limit: int | None, dtype: torch.dtype
) -> tuple[torch.nn.Module, list[Divergence], dict[str, Any]]:
    """The loaded checkpoint, what is measured on it, and on which samples."""
    if request.info.family == "huggingface":
        return _text_references(request, names, limit, dtype)
    chosen = sensitivity_samples.chosen(request.info, names, limit)
    samples = [sample for suite in chosen for sample in suite.samples] or drawn_samples(limit)
    own = {key: value for suite in chosen for key, value in suite.settings.items()}
    settings = Settings.combine(request.info.defaults, own)
    pipeline = load_model(request.info.path, request.device, dtype, observed=True)
    described = {
        "suites": list(names or ()),
        "samples": len(samples),
        "fingerprint": sha256_text("\n".join(sample.fingerprint() for sample in samples)),
    }
    return pipeline.model, divergence.of_lance(pipeline, samples, settings), described


def _text_references(
    request: Request, names: Sequence[str] | None, limit: int | None, dtype: torch.dtype
) -> tuple[torch.nn.Module, list[Divergence], dict[str, Any]]:
    chosen = sensitivity_samples.chosen(request.info, names, limit)
    documents = [sample.prompt for suite in chosen for sample in suite.samples]
    loaded = load_text_model(request.info.path, request.device, dtype)
    count = limit or PIECES
    described = {
        "suites": [suite.name for suite in chosen],
        "samples": count,
        "fingerprint": sha256_text("\f".join(documents)),
    }
    return loaded.model, [divergence.TextDivergence(reader_of(loaded), documents, count)], described
