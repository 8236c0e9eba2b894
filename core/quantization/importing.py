"""Making a variant of what another toolkit has quantized, code by code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.checkpoints.describe import CheckpointInfo, describe, own_record
from core.checkpoints.layout import Layout, layout_of
from core.errors import CheckpointError, UsageError
from core.files import replacing_folder
from core.formats.compressed_tensors import quantization_config, to_tensors
from core.formats.lance_quant import LanceQuantFiles
from core.formats.model_card import model_card
from core.formats.variant_folder import ShardWriter, write_companions
from core.quantization.fit import check_output
from core.quantization.layer import LinearRecord, store_plain
from core.quantization.scheme import Scheme
from core.store import Store
from core.store.manifest import versions

RECIPE = "lance-quant"


def check_names(files: LanceQuantFiles, layout: Layout) -> None:
    """Check that the files hold this checkpoint's target linears and every other tensor, and nothing else.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
    """
    place = files.source.place
    targets = layout.structure.target_linears()
    for name in sorted(set(targets) ^ set(files.linears)):
        state = "is not quantized" if name in targets else "is no target linear of this checkpoint"
        raise CheckpointError(f"{place}: {name} {state}; give the checkpoint that it was made from")
    for name in targets:
        rows, columns = layout.shapes[f"{name}.weight"]
        width = columns // 2 if files.scheme.bits == 4 else columns
        if files.source.shape(f"{name}.qweight") != (rows, width):
            raise CheckpointError(
                f"{place}: {name}.qweight has shape {list(files.source.shape(f'{name}.qweight'))}, "
                f"wanted {[rows, width]} by {layout.config_file}"
            )
    for problem in layout.problems(files.source, {f"{name}.weight" for name in targets}):
        raise CheckpointError(problem)


def check_import(folder: Path, checkpoint: Path) -> tuple[CheckpointInfo, LanceQuantFiles, Layout]:
    """Check that a folder of lance-quant can become a variant of ``checkpoint``, by headers and JSON files alone.

    Returns:
        The checkpoint, the folder's files, and the checkpoint's layout.

    Raises:
        UsageError: the folder holds no such files, or ``checkpoint`` is a variant or no Lance.
        CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
    """
    info = describe(checkpoint)
    if info.kind == "variant":
        raise UsageError(f"{info.name} is a variant; give the checkpoint that {folder} was made from")
    if info.family != "lance":
        raise UsageError(f"{info.name} is no Lance; give the checkpoint that {folder} was made from")
    files = LanceQuantFiles.open(folder)
    layout = layout_of(info.path)
    check_names(files, layout)
    return info, files, layout


def import_variant(
    store: Store,
    folder: Path,
    checkpoint: Path,
    output: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Turn a folder of lance-quant into a registered variant; no number of it changes.

    Args:
        store: where it is registered.
        folder: ``awq_state_dict.safetensors`` and ``awq_meta.json``, or ``nvfp4_state_dict.safetensors`` and
            ``nvfp4_meta.json``.
        checkpoint: what it was made from: sizes, tokenizer and defaults come from there.
        output: the variant's folder; None puts it beside the database.
        progress: called with (linears done, linears in all).

    Raises:
        UsageError, CheckpointError: as ``check_import``; also a damaged tensor, which is named, or something else
            than a variant where it is to be written.
    """
    info, files, layout = check_import(folder, checkpoint)
    scheme = files.scheme
    number = "nvfp4" if scheme.kind == "nvfp4" else f"int{scheme.bits}"
    name = f"{info.name}_{RECIPE}-{number}-g{scheme.group_size}"
    target = output or store.data_dir / "variants" / name
    check_output(target)
    groups = {linear: group.key for group in layout.structure.groups() for linear in group.linears}
    packed = elements = 0
    with replacing_folder(target) as partial:
        writer = ShardWriter(partial)
        for index, linear in enumerate(files.linears):
            progress(index, len(files.linears))
            weight = files.weight(linear)
            tensors = to_tensors(linear, weight)
            packed += sum(tensor.nbytes for tensor in tensors.values())
            elements += math.prod(layout.shapes[f"{linear}.weight"])
            writer.add(tensors)
        plain = sorted(files.others())
        for key in plain:
            writer.add({key: store_plain(key, files.source.get(key, finite=True))})
        written = writer.finish()
        bits = 8 * packed / elements
        records = [
            LinearRecord(linear, scheme.label, groups[linear], made, 0.0, None, None, None).to_json()
            for linear, made in files.linears.items()
        ]
        summary = "imported from lance-quant, every code, scale and zero as it was"
        if files.scale_error is not None:
            summary = (
                "imported from lance-quant, every code and E4M3 scale as it was; those scales are "
                f"{files.scale_error:.1%} (RMS) off the bfloat16 ones that lance-quant computes with"
            )
        write_companions(
            partial,
            info.path,
            quantization_config(scheme, list(layout.structure.untouched)),
            _recipe_text(scheme, summary),
            {
                "name": name,
                "source_path": str(info.path),
                "source": {"name": info.name, "fingerprint": info.fingerprint},
                "imported_from": str(files.folder),
                "defaults": own_record(info.path).get("defaults", {}),
                "recipe": RECIPE,
                "scheme": scheme.to_json(),
                "bits": bits,
                "size_bytes": written.size_bytes,
                "calibration": None,
                "tensors": {"read": len(plain) + len(files.parts) * len(records), "quantized": len(records)},
                "files": written.files,
                "versions": {key: versions()[key] for key in ("lance-workbench", "torch", "safetensors")},
                "linears": records,
            },
            model_card(
                structure=layout.structure,
                name=name,
                base=info.name,
                summary=summary,
                recipe=RECIPE,
                schemes=[scheme],
                label=scheme.label,
                outer={},
                bits_per_weight=bits,
                size_bytes=written.size_bytes,
                records=records,
            ),
        )
    store.register_checkpoint(
        name=name,
        path=str(target),
        kind="variant",
        family="lance",
        parent=info.name,
        recipe=RECIPE,
        bits=bits,
        size_bytes=written.size_bytes,
        fingerprint=describe(target).fingerprint,
        details={"scheme": scheme.to_json(), "imported_from": str(files.weights_file)},
    )
    return {
        "variant": name,
        "path": str(target),
        "scheme": scheme.to_json(),
        "size_bytes": written.size_bytes,
        "bits_per_weight": bits,
        "linears": len(records),
        "scale_error": files.scale_error,
    }


def _recipe_text(scheme: Scheme, summary: str) -> str:
    """The format as a recipe writes it."""
    lines = ['type = "nvfp4"']
    if scheme.kind == "int":
        lines = [f"bits = {scheme.bits}", f"group = {scheme.group_size}", "symmetric = false"]
    return "\n".join([f"# {summary}", f'name = "{RECIPE}"', "[format]", *lines, ""])
