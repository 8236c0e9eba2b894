"""The job ``quantize``: from a checkpoint's name and a recipe to a registered variant."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from core.checkpoints.describe import describe, own_record
from core.checkpoints.source import TensorSource
from core.files import replacing_folder, sha256_text
from core.formats.compressed_tensors import quantization_config
from core.formats.model_card import model_card
from core.formats.variant_folder import (
    MAX_SHARD_BYTES,
    ShardWriter,
    Written,
    write_companions,
    write_record,
)
from core.jobs.context import JobContext
from core.quantization import mixing, sensitivity_job
from core.quantization.estimate import estimate
from core.quantization.fit import outer_formats
from core.quantization.inputs import CalibrationInputs, open_streams
from core.quantization.layer import FindInputs
from core.quantization.pipeline import Accounting, plan, quantize
from core.quantization.recipe import Recipe
from core.quantization.request import Request, extent_of, look_up
from core.quantization.sensitivity_results import stored
from core.quantization.unfinished import job_fingerprint, unfinished
from core.refinement.predict import predict
from core.refinement.step import refine
from core.runtime.device import suit_threads
from core.store.manifest import collect, versions


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Quantize as ``spec`` says; with ``dry_run``, only predict sizes and peaks, and estimate how long it would
    compute by a short probe of the device.

    The variant appears under its final name whole or not at all; a job that was killed is gone on with.
    """
    started = time.monotonic()
    request = look_up(spec, context.store)
    predicted = {"variant": request.name, "path": str(request.output), "plan": asdict(request.plan)}
    if spec.get("dry_run"):
        seconds = estimate(
            request.layout, request.recipe, request.device, extent_of(request.calibration).tokens
        )
        if request.recipe.refine is not None and request.drawn is not None:
            later = predict(request.info, request.layout, request.recipe, request.drawn, request.device)
            predicted |= {"refine": asdict(later)}
            seconds += later.seconds
        return predicted | {"estimated_seconds": round(seconds, 1), "dry_run": True}
    suit_threads(request.info.nbytes, request.device)
    request = _settled(request, context)
    context.log(
        f"{request.name}: {request.plan.linears} linears as {request.label}, "
        f"{request.plan.size_bytes / 1e6:,.1f} MB expected"
    )
    calibration = None if request.calibration is None else request.calibration[1].fingerprint
    run_id = context.store.start_run(
        kind="quantize",
        checkpoint=request.info.name,
        variant=request.name,
        recipe=request.recipe.name,
        bits=request.plan.bits_per_weight,
        job_id=context.job_id,
        device=str(request.device),
        spec_hash=sha256_text(json.dumps(spec, sort_keys=True)),
        manifest=collect(
            device=str(request.device),
            kernel_path=f"torch:{request.device.type}",
            seeds={},
            checkpoint=request.info.fingerprint,
            recipe=request.recipe.fingerprint,
            calibration=calibration,
        ),
    )
    accounting, written = make_variant(request, context)
    variant = describe(request.output)
    summary = summarise(accounting)
    if request.recipe.refine is not None:
        summary["refine"] = own_record(request.output)["refine"]
    context.store.register_checkpoint(
        name=request.name,
        path=str(request.output),
        kind="variant",
        family=request.info.family,
        parent=request.info.name,
        recipe=request.recipe.name,
        bits=request.plan.bits_per_weight,
        size_bytes=written.size_bytes,
        fingerprint=variant.fingerprint,
        details={
            "scheme": request.recipe.scheme.to_json(),
            **_gen(request.recipe),
            "recipe_fingerprint": request.recipe.fingerprint,
            "calibration": None if request.calibration is None else request.calibration[1].name,
            "calibration_fingerprint": calibration,
            "run_id": run_id,
            **summary,
        },
    )
    seconds = time.monotonic() - started
    context.store.update_run(run_id, size_bytes=written.size_bytes)
    context.store.finish_run(run_id, "succeeded", seconds)
    return {
        "variant": request.name,
        "path": str(request.output),
        "run": run_id,
        "size_bytes": written.size_bytes,
        "bits_per_weight": request.plan.bits_per_weight,
        "seconds": round(seconds, 3),
        **summary,
    }


def _settled(request: Request, context: JobContext) -> Request:
    """The request with the widths of a mixed recipe chosen, by a stored sensitivity or one that is measured now."""
    recipe, layout = request.recipe, request.layout
    if not mixing.is_open(recipe, layout):
        return request
    found = stored(context.data_dir, sensitivity_job.made_from(request))
    if found is None:
        found = sensitivity_job.measure(request, context, None, None, steps=False)
    chosen = mixing.choose(recipe, layout, sensitivity_job.group_results(found))
    context.log(f"{request.name}: widths by {found['name']}: {mixing.in_words(chosen, layout)}")
    source, extent = TensorSource.open(request.info.path), extent_of(request.calibration)
    predicted = plan(source, layout, chosen, MAX_SHARD_BYTES, extent)
    return replace(request, recipe=chosen, plan=predicted)


def make_variant(request: Request, context: JobContext) -> tuple[Accounting, Written]:
    """Compute and write the variant folder, going on from what a killed job has done of it."""
    recipe, info, structure = request.recipe, request.info, request.layout.structure
    source = TensorSource.open(info.path)
    find: FindInputs = lambda group: None  # noqa: E731
    tokens = calibration = streams = None
    if request.calibration is not None:
        folder, record = request.calibration
        find = inputs = CalibrationInputs(folder, recipe, request.thin, request.device)
        streams = open_streams(info.path, folder, recipe, inputs, request.device)
        tokens = {linear: sum(buckets.values()) for linear, buckets in record.tokens.items()}
        calibration = record.fingerprint
    made_from = job_fingerprint(info.fingerprint, recipe.fingerprint, calibration, request.device.type)
    with unfinished(request.output, made_from) as layers, replacing_folder(request.output) as partial:
        writer = ShardWriter(partial)
        accounting = quantize(
            source,
            request.layout,
            recipe,
            find,
            tokens,
            writer.add,
            request.device,
            lambda done, total, message: context.progress(done, total, "layers", message),
            layers,
            streams,
        )
        if layers.resumed:
            context.log(f"{request.name}: went on from {layers.resumed} layers that were done before")
        written = writer.finish()
        records = [record.to_json() for record in accounting.records]
        provenance = _provenance(request, accounting, written, records)
        write_companions(
            partial,
            info.path,
            quantization_config(
                recipe.scheme,
                list(structure.untouched),
                outer_formats(structure, recipe),
                request.schemes,
            ),
            recipe.text,
            provenance,
            model_card(
                structure=structure,
                name=request.name,
                base=info.name,
                summary=recipe.summary,
                recipe=recipe.name,
                schemes=list(dict.fromkeys(request.schemes.values())),
                label=request.label,
                outer={key: scheme for key, scheme in recipe.outer.items() if structure.outer[key]},
                bits_per_weight=request.plan.bits_per_weight,
                size_bytes=written.size_bytes,
                records=records,
            ),
            tied=structure.tied and not recipe.outer,
        )
        if recipe.refine is not None:
            _refine(partial, request, provenance, context)
    return accounting, written


def _refine(folder: Path, request: Request, provenance: dict[str, Any], context: JobContext) -> None:
    """Refine the variant in ``folder``, which is whole but has no name yet, and say in its record what came of it."""
    recipe, structure = request.recipe, request.layout.structure
    assert recipe.refine is not None and request.drawn is not None and request.calibration is not None
    context.log(f"{request.name}: refining {' and '.join(recipe.refine.learn)}")
    verdicts, files = refine(
        folder,
        request.info,
        structure,
        recipe.refine,
        request.drawn,
        request.device,
        lambda done, total, message: context.progress(done, total, "steps", message),
    )
    for verdict in verdicts:
        context.log(f"{request.name}: {verdict.in_words()}")
    refined = [verdict.to_json() for verdict in verdicts]
    changed = {"refine": refined, "files": provenance["files"] | files}
    write_record(folder, provenance | changed)


def _provenance(
    request: Request, accounting: Accounting, written: Written, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of ``lance_workbench.json``; no times, so that equal inputs give equal files."""
    info, recipe = request.info, request.recipe
    calibration = None if request.calibration is None else request.calibration[1]
    return {
        "name": request.name,
        "source_path": str(info.path),
        "source": {"name": info.name, "fingerprint": info.fingerprint},
        "defaults": own_record(info.path).get("defaults", {}),
        "recipe": recipe.name,
        "recipe_fingerprint": recipe.fingerprint,
        "scheme": recipe.scheme.to_json(),
        **_gen(recipe),
        "bits": request.plan.bits_per_weight,
        "size_bytes": written.size_bytes,
        "calibration": None
        if calibration is None
        else {"name": calibration.name, "fingerprint": calibration.fingerprint, "tasks": calibration.tasks},
        "tensors": accounting.counts(),
        "files": written.files,
        "versions": {key: versions()[key] for key in ("lance-workbench", "torch", "safetensors")},
        "linears": records,
    }


def _gen(recipe: Recipe) -> dict[str, Any]:
    return {} if recipe.gen is None else {"gen": recipe.gen.to_json()}


def summarise(accounting: Accounting) -> dict[str, Any]:
    """Counts of tensors, and mean losses over the groups that have them."""
    losses = {
        record.group: (record.loss_before, record.loss_after)
        for record in accounting.records
        if record.loss_before is not None and record.loss_after is not None
    }
    return {
        "tensors": accounting.counts(),
        "linears": len(accounting.records),
        "scaled": sum(record.mode in ("plain", "duo") for record in accounting.records),
        "uncovered": sum(record.mode == "uncovered" for record in accounting.records),
        "loss_before": _mean(before for before, _ in losses.values()),
        "loss_after": _mean(after for _, after in losses.values()),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
