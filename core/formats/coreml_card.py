"""The README.md of an exported Core ML package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from core.formats.coreml_convert import HIDDEN, IDS, LOGITS, MASK, STATES
from core.formats.coreml_decoder import Sizes
from core.lance.prompts import IM_END, IM_START

_QUESTION = "What is the colour of a ripe banana?"
_TURN = f"{IM_START}user\n{_QUESTION}{IM_END}\n{IM_START}assistant\n"
_CALL = """```python
import coremltools as ct
import numpy as np
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = ct.models.MLModel("{package}", compute_units=ct.ComputeUnit.CPU_AND_GPU)
state, past = model.make_state(), 0
stop = tokenizer.convert_tokens_to_ids({stop})
ids, answer = tokenizer({prompt})["input_ids"], []
while len(answer) < 50:
    new = len(ids)
    mask = np.triu(np.full((new, past + new), {hidden:g}, np.float16), past + 1)
    inputs = {{"{ids}": np.array([ids], np.int32), "{mask}": mask[None, None]}}
    token = int(model.predict(inputs, state)["{logits}"][0, -1].argmax())
    if token == stop:
        break
    past, ids = past + new, [token]
    answer.append(token)
print(tokenizer.decode(answer))
```"""


def features(sizes: Sizes) -> dict[str, str]:
    """What each input, output and state of the package means."""
    cache = "zeros at first, the package writes it"
    return {
        IDS: "Ids of the next n tokens",
        MASK: "Added to the attention's scores: 0 where a new token (row) sees a token (column), "
        f"{HIDDEN:g} elsewhere; columns are the tokens in the cache and the n new ones",
        LOGITS: f"For each of the n tokens, a number for each of the {sizes.vocabulary} that may come next",
        STATES[0]: f"Keys of {sizes.context} tokens; {cache}",
        STATES[1]: f"Values of {sizes.context} tokens; {cache}",
    }


def card(
    *,
    name: str,
    package: str,
    family: str,
    base: str,
    formats: Mapping[str, int],
    sizes: Sizes,
    runs_on: str,
    rounding: Sequence[str],
    left_out: Sequence[str],
    size_bytes: int,
) -> str:
    """Markdown for the export of the checkpoint or variant ``name`` of ``base``; ``formats`` counts its weights."""
    words = ", ".join(f"{count} as {label}" for label, count in formats.items())
    codes = "Codes are those of the source, bit for bit; a weight is `(code - zero) * scale`, rounded once to float16. "
    shape = [sizes.layers, 1, sizes.kv_heads, sizes.context, sizes.head_dim]
    meaning = features(sizes)
    kinds = {
        IDS: ("input", "int32 [1, n]"),
        MASK: ("input", "float16 [1, 1, n, past + n]"),
        LOGITS: ("output", f"float16 [1, n, {sizes.vocabulary}]"),
        STATES[0]: ("state", f"float16 {shape}"),
        STATES[1]: ("state", f"float16 {shape}"),
    }
    what = "The understanding expert of" if family == "lance" else "The decoder of"
    licence = ["license: apache-2.0"] if family == "lance" else []
    lines = [
        "---",
        *licence,
        "library_name: coremltools",
        f"base_model: {base}",
        "tags: [coreml, text-generation]",
        "---",
        "",
        f"# {name} for Core ML",
        "",
        f"{what} {name} as `{package}`: text in, text out, with its key/value cache as the package's state. "
        f"Its matrices: {words}. {size_bytes / 1e6:,.1f} MB. Runs on {runs_on} and later.",
        "",
        "| name | | type and shape | meaning |",
        "|---|---|---|---|",
        *(f"| `{key}` | {kind} | {form} | {meaning[key]} |" for key, (kind, form) in kinds.items()),
        "",
        f"n and past + n go from 1 to {sizes.context}. Give a prompt in one call or in pieces of a few hundred "
        "tokens (the logits of all n come back), then token by token with the same state; a new text needs a new one.",
        "",
        _CALL.format(
            package=package,
            hidden=HIDDEN,
            ids=IDS,
            mask=MASK,
            logits=LOGITS,
            stop=f'"{IM_END}"' if family == "lance" else "tokenizer.eos_token",
            prompt=json.dumps(_TURN if family == "lance" else _QUESTION),
        ),
        "",
        (codes if set(formats) - {"float16"} else "") + " ".join(rounding),
        "",
        "Linears and attention compute in float16, everything between them in float32. Core ML runs on Apple's systems "
        "only, and the package was made without running it there: compare a first answer with the source's.",
        "",
    ]
    if left_out:
        lines += ["Left out:", "", *(f"- {each}" for each in left_out), ""]
    return "\n".join(lines)
