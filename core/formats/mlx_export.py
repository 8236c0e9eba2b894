"""Export for mlx-lm: a folder that it loads and generates with, on a Mac or on a CPU.

Of a Lance it is the understanding expert as a text model. Its decoder, a Qwen2 with a norm on each head, is mlx-lm's
Qwen3 with biases on q, k and v, which ``mlx_decoder`` beside the weights puts there. Lance's three-dimensional rotary
positions (SPEC 6) give text the same number three times, so its angles are those of plain rope, as long as no picture
stands before the text: there is none here. A causal LM runs with mlx-lm's own class.

Codes are never quantized again (``mlx_weights``). NVFP4's global scale, which mlx-lm's linears have no place for, needs
``mlx_decoder`` too.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core.checkpoints.describe import HF_CONFIG_FILE, describe
from core.errors import CheckpointError, WorkbenchError
from core.files import check_room, disk_errors, replacing_folder
from core.formats.compressed_tensors import SCALE
from core.formats.export_request import check_output
from core.formats.exported import GENERATION_FILE, Exported, copy_tokenizer, inventory
from core.formats.mlx_card import card, losses
from core.formats.mlx_source import Source, open_source
from core.formats.mlx_weights import (
    DTYPE,
    Form,
    Rounding,
    affine,
    codes_of,
    expanded,
    form_of,
    nvfp4,
    plain,
)
from core.formats.understanding import Part, title
from core.formats.variant_folder import ShardWriter, write_json

DECODER_FILE = "mlx_decoder.py"
"""The architecture, here and in an export that needs it."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the weights that a variant stores as codes."""

    forms: dict[str, Form]
    """Part, by its name in the export -> how MLX holds its codes."""
    dense: list[Part]
    """Those that MLX has no form for: written as bfloat16."""
    own_file: bool
    """The architecture lies beside the weights."""


def export(source: Path, output: Path, say: Callable[[str], None]) -> Exported:
    """Write a Lance's understanding expert, or a causal LM, so that ``mlx_lm.load(output)`` loads it.

    Every key of the source is written, or belongs to what is left out and named. mlx-lm builds the model and holds
    names and shapes against it before the folder takes its name.

    Args:
        source: a checkpoint's or variant's folder.
        output: the folder to make: not there yet, or empty.
        say: told each step.

    Returns:
        What was written.

    Raises:
        UsageError: something is at ``output``, or a causal LM that mlx-lm computes otherwise.
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor, named; a tokenizer that cannot be read.
        WorkbenchError: mlx-lm is not installed, the disk is full, or the place cannot be written.
    """
    load_model = _mlx_lm()
    check_output(output)
    opened = open_source(describe(source))
    plan = _plan(opened)
    check_room(output, _size(opened, plan))
    rounding = Rounding()
    with replacing_folder(output) as partial:
        writer = ShardWriter(partial)
        for number, unit in enumerate(opened.units):
            say(f"writing {title(number, len(opened.units))}")
            tensors: dict[str, Tensor] = {}
            for part in unit:
                tensors |= _tensors(opened, part, plan, rounding)
            writer.add(tensors)
        written = writer.finish()
        left_out = [*opened.left_out, *losses(opened, plan.dense, rounding)]
        text = card(opened, plan.forms, left_out, own_file=plan.own_file)
        _companions(partial, opened, plan, text)
        say("loading it with mlx-lm, without its values")
        _check(load_model, partial, opened.info.path, own_file=plan.own_file)
        check_output(output)
        hashes, size = inventory(partial, written.files)
    trust = ", trust_remote_code=True" if plan.own_file else ""
    return Exported(output, size, hashes, tuple(left_out), f'mlx_lm.load("{output}"{trust})')


def _mlx_lm() -> Callable[..., Any]:
    try:
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise WorkbenchError(
            f'export as mlx: cannot be checked ({error}); `pip install "lance-workbench[mlx]"` brings mlx-lm'
        ) from error
    found: Callable[..., Any] = load_model
    return found


def _plan(opened: Source) -> Plan:
    stored, forms, dense = opened.stored, {}, []
    for part in opened.parts:
        scheme = stored.scheme(part)
        if scheme is None:
            continue
        form = form_of(scheme, part.shape[1])
        # MLX computes in the dtype of its scales, and scales of another dtype may not survive a cast to ours.
        if form is None or (scheme.kind == "int" and stored.files.dtype(f"{part.name}.{SCALE}") != "BF16"):
            dense.append(part)
        else:
            forms[part.own] = form
    scaled = any(form.mode == "nvfp4" for form in forms.values())
    return Plan(forms, dense, opened.beyond or scaled)


def _size(opened: Source, plan: Plan) -> int:
    """Bytes of the tensors that will be written."""
    total = 0
    for part in opened.parts:
        form = plan.forms.get(part.own)
        total += math.prod(part.shape) * DTYPE.itemsize if form is None else form.nbytes(part.shape)
        total += part.shape[0] * DTYPE.itemsize * part.bias
    return total


def _tensors(opened: Source, part: Part, plan: Plan, rounding: Rounding) -> dict[str, Tensor]:
    """What stands for a part in the export, by its name there."""
    stored, scheme, form = opened.stored, opened.stored.scheme(part), plan.forms.get(part.own)
    if scheme is None:
        found = {"weight": plain(stored, f"{part.name}.weight")}
    else:
        codes = codes_of(stored, part, scheme)
        if form is None:
            found = {"weight": expanded(codes, scheme, part.shape[1])}
        elif form.mode == "nvfp4":
            found = nvfp4(codes)
        else:
            found = affine(codes, scheme, part.shape[1], form, rounding)
    if part.bias:
        found["bias"] = plain(stored, f"{part.name}.bias")
    return {f"{part.own}.{leaf}": tensor for leaf, tensor in found.items()}


def _companions(folder: Path, opened: Source, plan: Plan, text: str) -> None:
    """Write config.json, tokenizer, generation defaults, model card and, where it is needed, the architecture."""
    body = dict(opened.config)
    if plan.forms:
        # mlx-lm looks up each module that may be quantized, and takes the first form for what it does not find.
        first = next(iter(plan.forms.values()))
        formats = first.to_json() | {name: form.to_json() for name, form in plan.forms.items()}
        body |= {"quantization": formats, "quantization_config": formats}
    if plan.own_file:
        body |= {"model_file": DECODER_FILE, "lance_workbench": opened.own}
    with disk_errors(folder):
        copy_tokenizer(opened.info.path, folder, GENERATION_FILE)
        if plan.own_file:
            shutil.copyfile(Path(__file__).with_name(DECODER_FILE), folder / DECODER_FILE)
        write_json(folder / HF_CONFIG_FILE, body)
        (folder / "README.md").write_text(text, encoding="utf-8")


def _check(load_model: Callable[..., Any], folder: Path, source: Path, *, own_file: bool) -> None:
    """Let mlx-lm build the model and find a tensor of the right shape for each of its parameters, and no other.

    Raises:
        CheckpointError: it does not.
    """
    try:
        load_model(folder, lazy=True, strict=True, trust_remote_code=own_file)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise CheckpointError(
            f"{source}: mlx-lm does not build what it is ({words[:300] or error!r}); another version of mlx-lm may"
        ) from error
