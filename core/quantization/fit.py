"""Whether a recipe fits a checkpoint and a calibration, from headers and JSON files alone; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from core.calibration.record import CalibrationRecord, coverage, load_record, too_few
from core.checkpoints.describe import CheckpointInfo
from core.checkpoints.layout import structure_of
from core.checkpoints.source import TensorSource
from core.errors import UsageError
from core.quantization import widths
from core.quantization.groups import Structure
from core.quantization.recipe import LATENT, Recipe
from core.quantization.scheme import Scheme


def formats(structure: Structure, recipe: Recipe) -> dict[str, Scheme]:
    """The format of every module that ``recipe`` quantizes, by name: target linears first."""
    found = {name: recipe.scheme_of(group) for group in structure.groups() for name in group.linears}
    return found | outer_formats(structure, recipe)


def outer_formats(structure: Structure, recipe: Recipe) -> dict[str, Scheme]:
    """The format of every module outside the layers that ``recipe`` quantizes, of those that there are."""
    return {name: scheme for key, scheme in recipe.outer.items() for name in structure.outer[key]}


def check_formats(structure: Structure, recipe: Recipe, shape_of: Callable[[str], tuple[int, ...]]) -> None:
    """Check that every module can be cut into the groups of its format.

    Args:
        structure: the checkpoint's decoder.
        recipe: how it is to be quantized.
        shape_of: the shape of a tensor by its name.

    Raises:
        UsageError: a group that does not divide a linear, or widths or a generation expert's format that the recipe
            cannot have here.
    """
    if recipe.gen is not None and "gen" not in structure.experts:
        raise UsageError(
            f"recipe {recipe.name}: has a format for the generation expert ([gen]), which this model has not; choose "
            "another recipe"
        )
    free = [group for group in structure.groups() if recipe.gen is None or group.expert != "gen"]
    widths.check(free, recipe.scheme, recipe.widths, recipe.name)
    for name, scheme in formats(structure, recipe).items():
        # A head that shares the embedding's tensor need not be in the files.
        stored = structure.embedding if name == structure.head and structure.tied else name
        scheme.check_shape(f"{name}.weight", shape_of(f"{stored}.weight"))


def check(recipe: Recipe, info: CheckpointInfo, calibration: Path | None) -> None:
    """Check all that can be told without reading tensors: what a job would refuse when it begins.

    Args:
        recipe: with the group that was chosen.
        info: the checkpoint.
        calibration: its folder; None for none.

    Raises:
        UsageError, CheckpointError: what does not fit.
    """
    check_source(info)
    structure = structure_of(info.path)
    check_calibration(recipe, info, structure, None if calibration is None else load_record(calibration))
    check_shapes(recipe, info)


def check_shapes(recipe: Recipe, info: CheckpointInfo) -> None:
    """Check that a recipe's groups and widths fit a checkpoint, whatever calibration there will be.

    Raises:
        UsageError, CheckpointError: what does not fit.
    """
    check_source(info)
    check_formats(structure_of(info.path), recipe, TensorSource.open(info.path).shape)


def check_source(info: CheckpointInfo) -> None:
    """Check that what is to be quantized is no variant.

    Raises:
        UsageError: it is one.
    """
    if info.kind == "variant":
        raise UsageError(f"{info.name} is already a variant; quantize the checkpoint it was made from")


def check_output(output: Path) -> None:
    """Check that a variant may be written at ``output``: nothing is there, or an empty folder, or a variant to replace.

    Raises:
        UsageError: something else is there, which would be lost.
    """
    if output.is_dir():
        own = all((output / name).is_file() for name in ("recipe.toml", "lance_workbench.json"))
        if own or not any(output.iterdir()):
            return
        raise UsageError(f"{output}: a folder that holds something, and no variant; choose another --output")
    if output.exists():
        raise UsageError(f"{output}: a file; choose another --output for the variant's folder")


def check_calibration(
    recipe: Recipe, info: CheckpointInfo, structure: Structure, record: CalibrationRecord | None
) -> list[str]:
    """Check that a calibration, or none, is enough for ``recipe`` on this checkpoint.

    Returns:
        The linears that saw fewer tokens than the recipe asks for, if it lets them be rounded as they are.

    Raises:
        UsageError: the recipe needs one; it is of another checkpoint, or saw too few tokens.
    """
    if record is None:
        if recipe.needs_calibration:
            raise UsageError(
                f"recipe {recipe.name} looks at activations: give it a calibration of {info.name}, made by "
                f"`calibrations run {info.name}`"
            )
        return []
    check_origin(record, info)
    if recipe.follows:
        check_sequences(record, recipe, structure)
    return check_coverage(record, recipe, structure.target_linears()) if recipe.steps else []


def check_rows(recipe: Recipe, info: CheckpointInfo, given: bool) -> None:
    """Check that there is a calibration on whose rows a sensitivity can be measured.

    Raises:
        UsageError: none was given.
    """
    if not given:
        raise UsageError(
            f"recipe {recipe.name}: sensitivity is measured on a calibration's rows; give one of {info.name}"
        )


def check_origin(record: CalibrationRecord, info: CheckpointInfo) -> None:
    """Check that a calibration was taken from this checkpoint.

    Raises:
        UsageError: it was taken from another.
    """
    if record.checkpoint_fingerprint != info.fingerprint:
        raise UsageError(
            f"calibration {record.name}: was taken from {record.checkpoint} "
            f"({record.checkpoint_fingerprint[:12]}), not from {info.name} ({info.fingerprint[:12]}); "
            "calibrate this checkpoint"
        )


def check_sequences(record: CalibrationRecord, recipe: Recipe, structure: Structure) -> None:
    """Check that a calibration keeps whole sequences of each expert, to be run on through quantized layers.

    How many is not asked: they change no more than holds on sequences that were left out.

    Raises:
        UsageError: it keeps none, or none with tokens of an expert whose linears must have been seen.
    """
    or_else = 'or set inputs = "original" in the gptq step of the recipe'
    if not record.sequence_tokens:
        raise UsageError(
            f"calibration {record.name}: keeps no sequences, which recipe {recipe.name} needs to go by the inputs of "
            f"the quantized model; calibrate again, {or_else}"
        )
    roles = {bucket.rpartition("/")[2] for bucket in record.sequence_tokens}
    for expert in structure.experts:
        seen = any((role in LATENT) == (expert == "gen") for role in roles)
        if not seen and recipe.too_few == "error":
            raise UsageError(
                f"calibration {record.name}: its sequences hold no token of the {expert} expert, which recipe "
                f"{recipe.name} needs; calibrate with more tasks, {or_else}"
            )


def check_coverage(record: CalibrationRecord, recipe: Recipe, linears: Sequence[str]) -> list[str]:
    """The linears that saw fewer tokens than the recipe asks for, if it lets them be rounded as they are.

    Raises:
        UsageError: the recipe does not; the first of them is named with its count.
    """
    thin = too_few(coverage(record.tokens, linears), recipe.min_tokens)
    if thin and recipe.too_few == "error":
        more = f" and {len(thin) - 1} more linears" if len(thin) > 1 else ""
        raise UsageError(
            f"calibration {record.name}: {thin[0].linear} saw {thin[0].tokens} tokens{more} too few, recipe "
            f"{recipe.name} wants {recipe.min_tokens}; calibrate with more samples or tasks, "
            'or set too_few = "round" in the recipe'
        )
    return [row.linear for row in thin]
