"""The README.md of an export for mlx-lm, and what it says was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.formats.exported import PROMPT, by_scheme, taken_from
from core.formats.mlx_source import Source
from core.formats.mlx_weights import Form, Rounding
from core.formats.understanding import Part

ROUNDING_TO_CODES = 0.29
"""Steps: root mean square of an even spread over one step, 1 / sqrt(12)."""


def losses(source: Source, dense: Sequence[Part], rounding: Rounding) -> list[str]:
    """What is written otherwise than it is stored, each in words."""
    schemes = {part.own: scheme for part in dense if (scheme := source.stored.scheme(part)) is not None}
    said = [
        f"the {label} codes of {which}, which MLX has no form for: written as bfloat16, the values the workbench "
        "computes with"
        for label, which in by_scheme(schemes, "modules")
    ]
    if rounding.linears:
        said.append(
            f"the last bits of the zero points of {rounding.linears} linears: MLX adds a bfloat16 number to each group "
            f"instead, off by {rounding.rms:.3f} of a step in the root mean square and {rounding.worst:.3f} at most, "
            f"where rounding to codes is off by {ROUNDING_TO_CODES}"
        )
    if wide := source.stored.wide(source.parts):
        said.append(f"the precision of {' and '.join(wide)}: rounded to bfloat16")
    return said


def card(source: Source, forms: Mapping[str, Form], left_out: Sequence[str], *, own_file: bool) -> str:
    """Markdown for an export.

    Args:
        source: what it was made from.
        forms: how MLX holds the codes of each quantized module.
        left_out: what it lacks, each in words.
        own_file: whether its architecture lies beside the weights.
    """
    name, lance = source.info.name, source.info.family == "lance"
    how = _formats(source, forms)
    # A causal LM's licence is the base model's, which its files do not tell.
    head = [*(["license: apache-2.0"] if lance else []), "library_name: mlx", "pipeline_tag: text-generation"]
    head += [f"base_model: {name}", "tags: [mlx, lance]" if lance else "tags: [mlx]"]
    what = "The understanding expert of" if lance else "The decoder of"
    about = [f"{what} {name} as a text model for [mlx-lm](https://github.com/ml-explore/mlx-lm), {how}."]
    if own_file:
        about.append(
            f"`mlx_decoder.py` is its architecture: mlx-lm's {source.own['decoder']} and what that lacks "
            f"({', '.join(_beyond(source, forms))}). mlx-lm runs it only if told to trust it."
        )
    if lance:
        about.append(
            "Its rope is plain: text has the same position in all three rows of Lance's M-RoPE as long as no picture "
            "comes before it, and none can here."
        )
    if "rope_inverse_frequencies" in source.own:
        about.append("Its rotary frequencies are rounded to bfloat16, as Lance was trained.")
    trust = ", trust_remote_code=True" if own_file else ""
    flag = " --trust-remote-code" if own_file else ""
    prompt = PROMPT if lance else ('text = "What is a lance?"',)
    lines = ["---", *head, "---", "", f"# {name} for MLX", "", *about, ""]
    lines += ["```python", "import mlx_lm", "", f'model, tokenizer = mlx_lm.load("."{trust})', *prompt]
    lines += ["print(mlx_lm.generate(model, tokenizer, text, max_tokens=128))", "```", ""]
    lines += [
        f"Or `mlx_lm.generate --model .{flag} --prompt ...`; it decodes greedily unless told a temperature.",
        "",
    ]
    if left_out:
        lines += ["Left out:", "", *(f"- {each}" for each in left_out), ""]
    return "\n".join([*lines, taken_from(name, source.info.fingerprint), ""])


def _beyond(source: Source, forms: Mapping[str, Form]) -> list[str]:
    """What an architecture of its own is for."""
    biases = [path.rpartition(".")[2] for path in source.own.get("biases", ())]
    said = [f"biases on {', '.join(biases)}"] if biases else []
    if "rope_inverse_frequencies" in source.own:
        said.append("rounded rotary frequencies")
    if any(form.mode == "nvfp4" for form in forms.values()):
        said.append("NVFP4's global scale")
    if "vocabulary" in source.own:
        said.append("no token beyond the tokenizer's")
    return said


def _formats(source: Source, forms: Mapping[str, Form]) -> str:
    """``28 modules as int4 asym g64 (mode affine, 4 bits, group 64), …, and the rest in bfloat16``."""
    if not forms:
        return "in bfloat16"
    counts: dict[str, int] = {}
    for part in source.parts:
        scheme, form = source.stored.scheme(part), forms.get(part.own)
        if scheme is None or form is None:
            continue
        stored = f"mode {form.mode}, {form.bits} bits, group {form.group_size}"
        label = f"{scheme.label} ({stored})"
        counts[label] = counts.get(label, 0) + 1
    said = " and ".join(f"{count} module{'s' * (count > 1)} as {label}" for label, count in counts.items())
    return f"{said}, with the very codes of the variant, and the rest in bfloat16"
