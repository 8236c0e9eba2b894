"""The README.md of an export for transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.checkpoints.describe import CheckpointInfo
from core.formats.exported import PROMPT, taken_from
from core.quantization.scheme import Scheme


def export_card(
    info: CheckpointInfo, carried: Mapping[str, Scheme], left_out: Sequence[str], *, rounded: bool
) -> str:
    """Markdown for the understanding expert of ``info``.

    Args:
        info: the checkpoint or variant that it was taken from.
        carried: the linears that are stored as codes, with their formats.
        left_out: what it lacks, each in words.
        rounded: whether its rotary frequencies are those rounded to bfloat16.
    """
    labels = sorted({scheme.label for scheme in carried.values()})
    tags = "[lance, compressed-tensors, quantized]" if carried else "[lance]"
    how = "in bfloat16"
    if carried:
        how = f"its {len(carried)} linears as {' and '.join(labels)}, with the codes of the variant"
    rope = "Its rope is plain: text has the same position in all three rows of Lance's M-RoPE."
    if rounded:
        rope = (
            "Lance was trained with rotary frequencies rounded to bfloat16; they are written as the factors of a "
            "`longrope`, the same at every length. Text has the same position in all three rows of Lance's M-RoPE."
        )
    needs = (
        " Its weights are in the layout of compressed-tensors, which must be installed." if carried else ""
    )
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            f"base_model: {info.name}",
            f"tags: {tags}",
            "---",
            "",
            f"# {info.name}: understanding expert",
            "",
            f"The understanding expert of {info.name} as a causal LM for text, {how}. It is a Qwen3 with biases on q, "
            "k and v (that on o is zero) and needs no code of its own: Lance's decoder has Qwen2's biases and the "
            f"norms of each head.{needs}",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'folder = "."',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "model = AutoModelForCausalLM.from_pretrained(folder)",
            *PROMPT,
            'print(tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"))[0]))',
            "```",
            "",
            f"{rope} It decodes greedily, as Lance does.",
            "",
            "Left out:",
            "",
            *(f"- {each}" for each in left_out),
            "",
            taken_from(info.name, info.fingerprint, "transformers"),
            "",
        ]
    )
