"""The decoder that Core ML gets of a causal LM, against transformers' own model; the package has tests of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
import torch

from core.checkpoints.describe import describe
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.formats.coreml_sizes import causal_sizes, check_known
from core.formats.coreml_weights import Reader
from core.huggingface.loading import load_causal_lm
from core.huggingface.structure import read_structure

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in tiny_decoders.KINDS),
    ("qwen2.5", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("mistral", {"sliding_window": 24}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_it_answers_as_in_transformers_prompt_and_token_by_token(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_decoders.write(tmp_path / "model", kind, **changes)
    info, structure = describe(folder), read_structure(folder)
    check_known(info)
    model, sizes = causal_sizes(info, structure)
    reader = Reader(TensorSource.open(folder), structure, model, None)
    decoder = reader.decoder(sizes).float()
    assert sizes.context == changes.get("sliding_window", 256)
    ids = torch.randint(2, 380, (1, 24), generator=torch.Generator().manual_seed(0))
    hidden = torch.full((24, 24), -3e4).triu(1)[None, None]
    with torch.inference_mode():
        rows = [
            decoder(ids[:, a:b].int(), hidden[:, :, a:b, :b])
            for a, b in ((0, 20), (20, 21), (21, 22), (22, 24))
        ]
        wanted = load_causal_lm(folder, "cpu", torch.float32).model(input_ids=ids).logits
    # The weights are random float32 numbers, which float16 rounds.
    assert float((torch.cat(rows, 1) - wanted).abs().max()) < 3e-3 * float(wanted.abs().max())


def test_rotations_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    folder = tiny_decoders.write(tmp_path / "model", "llama", rope_parameters=dynamic)
    with pytest.raises(CheckpointError, match="rope_type is 'dynamic', Core ML gets default"):
        causal_sizes(describe(folder), read_structure(folder))
