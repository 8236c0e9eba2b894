"""A vocabulary's rows rounded some at a time are what they are when rounded together."""

from __future__ import annotations

import pytest
import torch

from core.formats.compressed_tensors import to_tensors
from core.quantization import pipeline
from core.quantization.rounding import Rounding, round_blindly
from core.quantization.scheme import Scheme


@pytest.mark.parametrize("scheme", [Scheme(8, 64, True), Scheme(5, 32, False)], ids=lambda s: s.label)
def test_pieces_make_the_whole(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(150, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(pipeline, "PIECE", 64 * 128)
    found = pipeline.round_in_pieces("lm_head", weight, scheme, torch.device("cpu"))
    whole = round_blindly([weight.float()], Rounding(scheme, True, False)).weights[0]
    wanted = to_tensors("lm_head", whole)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
