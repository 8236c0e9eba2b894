"""Tiny causal LMs of every kind that is understood, with random weights, as transformers saves them."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2.5": ("Qwen2Config", {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
}
"""By what a person calls them: the config class of transformers and what it is told beside ``SIZES``."""


@functools.cache
def tokenizer(vocabulary: int = 380) -> Any:
    """A byte-level tokenizer with a special token in front, as Llama's has one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    from core.calibration.prose import SHIPPED

    made.train_from_iterator([SHIPPED.read_text(encoding="utf-8")[:60000]], trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def build(kind: str, seed: int = 0, **sizes: Any) -> Any:
    """A model of ``kind`` with random weights, biases and norms too."""
    import transformers

    name, own = KINDS[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**(SIZES | own | sizes), bos_token_id=0, eos_token_id=1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in model.named_parameters():
        if key.endswith(".bias"):
            parameter.data.normal_(0, 0.2)
        elif "norm" in key:
            parameter.data.uniform_(0.5, 1.5)
        else:
            parameter.data.normal_(0, 0.08)
    return model


def write(folder: Path, kind: str, *, shards: str = "1GB", **sizes: Any) -> Path:
    """A checkpoint folder of ``kind``; ``shards`` is the greatest size of a file."""
    model = build(kind, **sizes)
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer().save_pretrained(folder)
    return folder
