"""The README.md of a variant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

from core.formats.compressed_tensors import FORMATS
from core.quantization.groups import KINDS, Structure
from core.quantization.scheme import Scheme

_WORDS = {"qkv": "q, k, v", "o": "o", "gate_up": "gate, up", "down": "down"}


def model_card(
    *,
    structure: Structure,
    name: str,
    base: str,
    summary: str,
    recipe: str,
    schemes: Collection[Scheme],
    label: str,
    outer: Mapping[str, Scheme],
    bits_per_weight: float,
    size_bytes: int,
    records: Sequence[dict[str, Any]],
) -> str:
    """Markdown for the variant ``name`` of a checkpoint; ``schemes`` are the formats of its target linears, which
    ``label`` names, and ``records`` those linears'.
    """
    rest = "everything else is bfloat16"
    if outer:
        named = {"time": "time embedding"}
        words = " and ".join(f"the {named.get(key, key)} as {form.label}" for key, form in outer.items())
        rest = f"{words}, which only the workbench runs; {rest}"
    both = " of both experts" if len(structure.experts) > 1 else ""
    if structure.family == "lance":
        head = ["license: apache-2.0", f"base_model: {base}", "tags: [lance, compressed-tensors, quantized]"]
        names = "tensor names are Lance's. The vision tower and the VAE are those of the base model and lie beside it."
    else:
        # The licence is the base model's, which its files do not tell.
        head = ["library_name: transformers", f"base_model: {base}", "tags: [compressed-tensors, quantized]"]
        names = "tensor names are the base model's"
        # transformers expands all weights by one format, and lays packed zeros out wrongly where there are several.
        several = len({record["scheme"] for record in records}) > 1
        loads = not outer and (all(scheme.symmetric for scheme in schemes) or not several)
        names += ", and transformers loads it where compressed-tensors is installed." if loads else "."
    layouts = " and ".join(f"`{name}`" for name in dict.fromkeys(FORMATS[scheme.kind] for scheme in schemes))
    if any(scheme.kind == "fp8" for scheme in schemes):
        names += " Linears in fp8 round their activations too, token by token."
    lines = [
        "---",
        *head,
        "---",
        "",
        f"# {name}",
        "",
        f"{base} with its {len(records)} target linears (q, k, v, o, gate, up, down{both}) as "
        f"{label}, {bits_per_weight:.2f} bits a weight with scales and zeros; {rest}. "
        f"{size_bytes / 1e6:,.1f} MB of tensors.",
        "",
        f"Recipe `{recipe}`: {summary}. `recipe.toml` holds it whole, `lance_workbench.json` what it was made "
        "from and a record of every linear.",
        "",
        f"The layout is {layouts} of "
        "[compressed-tensors](https://github.com/vllm-project/compressed-tensors); " + names,
        "",
    ]
    losses = [_loss_row(expert, kind, records) for expert in structure.experts for kind in KINDS]
    if any(row is not None for row in losses):
        lines += [
            "Relative squared error of each block's output on calibration rows, mean over layers:",
            "",
            "| expert | linears | plain rounding | this variant |",
            "|---|---|---:|---:|",
            *(row for row in losses if row is not None),
            "",
        ]
    return "\n".join(lines)


def _loss_row(expert: str, kind: str, records: Sequence[dict[str, Any]]) -> str | None:
    mine = [
        record
        for record in records
        if record["group"].endswith(f".{expert}.{kind}") and record["loss_before"] is not None
    ]
    if not mine:
        return None
    before, after = (fmean(record[key] for record in mine) for key in ("loss_before", "loss_after"))
    return f"| {expert} | {_WORDS[kind]} | {before:.2e} | {after:.2e} |"
