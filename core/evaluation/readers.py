"""Loaded models as readers of running text: Lance's understanding expert, and plain causal LMs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.evaluation.conditions import CONTEXT
from core.evaluation.perplexity import Reader
from core.huggingface.loading import CausalLM
from core.lance.decoder import Routing
from core.lance.loading import Pipeline
from core.lance.roles import Role


def reader_of(model: Pipeline | CausalLM) -> Reader:
    """What reads text through ``model``."""
    return CausalReader(model) if isinstance(model, CausalLM) else LanceReader(model)


class CausalReader:
    """A causal LM, in windows of as many tokens as it has positions, and no more than ``CONTEXT``."""

    def __init__(self, model: CausalLM) -> None:
        self.context = min(CONTEXT, model.positions)
        self.encode = model.encode
        self.logits = model.logits


class LanceReader:
    """Lance's language side: text alone through the understanding expert, each token seeing those before it."""

    context = CONTEXT

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def encode(self, text: str) -> tuple[list[int], int]:
        """Token ids of ``text``; a structure marker in it is read as the words it is made of."""
        found = self.pipeline.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return list(found["input_ids"]), 0

    def logits(self, tokens: Sequence[int], first: int) -> Tensor:
        """Logits float32 [len(tokens) - first, vocabulary]; ids the tokenizer does not have are minus infinity."""
        model = self.pipeline.model
        ids = torch.tensor(list(tokens[:-1]), dtype=torch.int64)
        cos, sin = model.rotary(torch.arange(len(ids)).expand(3, -1))
        roles = torch.full((len(ids),), int(Role.TEXT), dtype=torch.int8, device=model.device)
        routing = Routing(None, None, roles, None)
        hidden = model.language_model.model(model.embed_text(ids), cos, sin, routing, causal=True)
        logits = model.logits(hidden[first - 1 :])
        logits[:, len(self.pipeline.tokenizer) :] = float("-inf")
        return logits
