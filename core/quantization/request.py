"""A request to quantize: a job's spec looked up, and everything that can be wrong with it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.calibration.record import CalibrationRecord, find_calibration, load_record, verify_statistics
from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.layout import Layout, layout_of
from core.checkpoints.resolve import resolve
from core.checkpoints.source import TensorSource
from core.files import expanded
from core.formats.variant_folder import MAX_SHARD_BYTES
from core.quantization import mixing, widths
from core.quantization import recipe as recipes
from core.quantization.fit import check_calibration, check_origin, check_output, check_source
from core.quantization.pipeline import Plan, plan
from core.quantization.recipe import Recipe
from core.quantization.scheme import Scheme
from core.quantization.streams import NOTHING, Extent
from core.refinement.samples import Drawn, draw_again
from core.runtime.device import pick_device
from core.store import Store


@dataclass(frozen=True)
class Request:
    """A job's spec, looked up: everything that can be wrong with it has been checked."""

    info: CheckpointInfo
    layout: Layout
    recipe: Recipe
    calibration: tuple[Path, CalibrationRecord] | None
    thin: list[str]
    """Linears the recipe allows to be rounded without calibration."""
    plan: Plan
    output: Path
    name: str
    device: torch.device
    drawn: Drawn | None = None
    """The calibration's samples, if the recipe refines by them."""

    @property
    def schemes(self) -> dict[str, Scheme]:
        """The format of every target linear."""
        groups = self.layout.structure.groups()
        return {name: self.recipe.scheme_of(group) for group in groups for name in group.linears}

    @property
    def label(self) -> str:
        """Their formats in a word."""
        return widths.label(self.schemes.values())


def open_calibration(store: Store, name: str, info: CheckpointInfo) -> tuple[Path, CalibrationRecord]:
    """A calibration, checked to be whole and of this checkpoint.

    Raises:
        UsageError: there is none of that name, or it is of another checkpoint.
        CheckpointError: its files are damaged.
    """
    folder = find_calibration(store, name)
    record = load_record(folder)
    check_origin(record, info)
    verify_statistics(folder, record)
    return folder, record


def extent_of(calibration: tuple[Path, CalibrationRecord] | None) -> Extent:
    """How many tokens the sequences of a calibration have, and how many rows of each input it keeps."""
    if calibration is None:
        return NOTHING
    record = calibration[1]
    buckets = max(map(len, record.tokens.values()), default=0)
    tokens = sum(record.sequence_tokens.values())
    return Extent(tokens, record.longest_sequence, buckets, record.rows_per_bucket)


def look_up(spec: dict[str, Any], store: Store) -> Request:
    """Resolve and check a spec; nothing is computed or written.

    Raises:
        UsageError, CheckpointError: what is wrong with it.
    """
    recipe = recipes.load(str(spec["recipe"])).with_group(spec.get("group"))
    info = describe(resolve(str(spec["checkpoint"]), store))
    check_source(info)
    layout = layout_of(info.path)
    calibration = None
    if spec.get("calibration"):
        calibration = open_calibration(store, str(spec["calibration"]), info)
    thin = check_calibration(recipe, info, layout.structure, None if calibration is None else calibration[1])
    # The widths of a mixed recipe are chosen once the job runs; its budget says now what they will come to.
    sized = mixing.choose(recipe, layout, None) if mixing.is_open(recipe, layout) else recipe
    name = f"{info.name}_{recipe.variant_suffix}"
    given = spec.get("output")
    output = expanded(given).resolve() if given else store.data_dir / "variants" / name
    check_output(output)
    return Request(
        info=info,
        layout=layout,
        recipe=recipe,
        calibration=calibration,
        thin=thin,
        plan=plan(TensorSource.open(info.path), layout, sized, MAX_SHARD_BYTES, extent_of(calibration)),
        output=output,
        name=name,
        device=pick_device(str(spec.get("device") or "auto")),
        drawn=draw_again(calibration[1], info, store) if calibration and recipe.refine else None,
    )
