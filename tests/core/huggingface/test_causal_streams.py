"""Sequences of a causal LM run on layer by layer are its own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
import torch

from core.calibration.sequences import Sequences
from core.calibration.statistics import Statistics
from core.calibration.texts import Piece, collect_texts
from core.huggingface.layer import CausalLayer
from core.quantization.streams import Streams
from core.runtime.causal_lm import load_text_model

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama-biases", {}),
    ("smollm", {}),
    ("qwen2.5", {}),
    ("qwen3", {}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 11}),
]


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_with_rounding_off_both_streams_are_the_models_own_hidden_states(
    kind: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_decoders.write(tmp_path / kind, kind, **sizes)
    model = load_text_model(folder, "cpu", torch.float32)
    tokens, _ = model.encode("When you have eliminated the impossible, whatever remains must be the truth.")
    chosen = [Piece("0", tokens[:30]), Piece("1", tokens[7:29])]
    kept = Sequences()
    collect_texts(model, chosen, Statistics(8), sequences=kept)
    layers = model.model.model.layers
    wanted: list[list[torch.Tensor]] = []
    for piece in chosen:
        outs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, given, out, outs=outs: outs.append(out)) for layer in layers
        ]
        model.model(input_ids=torch.tensor([piece.tokens]), use_cache=False)
        for hook in hooks:
            hook.remove()
        wanted.append([out[0] if isinstance(out, tuple) else out.flatten(0, -2) for out in outs])
    streams = Streams(
        CausalLayer(folder), model.structure, kept.chosen(), lambda group, tokens: {}, torch.device("cpu")
    )
    lengths = sorted(len(x) for x in streams.exact)
    assert lengths == ([11, 11] if sizes else [22, 30])
    for layer, module in enumerate(layers):
        weights = dict(module.named_parameters())
        streams.enter(layer, weights, watched=False)
        streams.leave(layer, weights)
        for exact, quantized, own in zip(streams.exact, streams.quantized, wanted, strict=True):
            torch.testing.assert_close(exact, own[layer][: len(exact)], rtol=1e-5, atol=1e-5)
            assert torch.equal(exact, quantized)
