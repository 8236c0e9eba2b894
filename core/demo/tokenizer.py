"""The demo's tokenizer: a byte-level BPE in Qwen2's layout, trained on the drawn world's texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from core.demo.captions import caption
from core.demo.drawing import FAMILIES, scene
from core.demo.prompts import SYSTEM_TEXTS
from core.files import write_text

ENTRIES = 1002
"""Vocabulary entries before the special tokens."""

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Lance's added tokens in their order; ids follow the vocabulary's."""

VOCAB_ROWS = ENTRIES + len(SPECIALS)
"""Rows of the embedding table: 1024."""

_SCENES = 1500
_FIRST_PLAIN = SPECIALS.index("<tool_call>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer; every digit stands alone."""


def corpus() -> Iterator[str]:
    """Texts to learn merges from: every question and answer of some scenes, captions, and Lance's system prompts.

    Licence plates are left out, so that no merge is spent on their pairs of letters.
    """
    for family in FAMILIES:
        for seed in range(_SCENES):
            for question in scene(family, seed).questions:
                yield question.text
                if question.kind not in ("plate-text", "plate-letters"):
                    yield question.answer
    for seed in range(4 * _SCENES):
        yield caption(seed).prompt
    for text in (*SYSTEM_TEXTS, "system\n", "user\n", "assistant\n"):
        for _ in range(50):
            yield text


def train() -> dict[str, Any]:
    """Learn vocabulary and merges: ``{"vocab": {token: id}, "merges": [[left, right], …]}``; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    # A small corpus can run out of pairs to merge; ids of special tokens stay where the embedding rows expect them.
    for filler in range(len(vocab), ENTRIES):
        vocab[f"<|unused_{filler}|>"] = filler
    return {
        "vocab": vocab,
        "merges": [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]],
    }


def config() -> dict[str, Any]:
    """The content of tokenizer_config.json, as Qwen2's tokenizer reads it."""
    added = {
        str(ENTRIES + index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": index < _FIRST_PLAIN,
        }
        for index, token in enumerate(SPECIALS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIALS[1:_FIRST_PLAIN]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write(folder: Path) -> None:
    """Train and write vocab.json, merges.txt and tokenizer_config.json into ``folder``."""
    learned = train()
    ordered = dict(sorted(learned["vocab"].items(), key=lambda item: item[1]))
    write_text(folder / "vocab.json", json.dumps(ordered, ensure_ascii=False))
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in learned["merges"]))
    write_text(folder / "tokenizer_config.json", json.dumps(config(), indent=1, ensure_ascii=False) + "\n")
