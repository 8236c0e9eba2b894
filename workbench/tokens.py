"""The text of each token of an answer, from a checkpoint's vocabulary files; no tokenizer library is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from core.errors import CheckpointError


@lru_cache(maxsize=1)
def _bytes_of_signs() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable sign (GPT-2, encoder.py): printable Latin-1 as itself, the other
    bytes as the code points from 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


@lru_cache(maxsize=2)
def _vocabulary(folder: Path) -> dict[int, str]:
    try:
        words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its vocab.json or tokenizer_config.json cannot be read ({error})"
        ) from error
    added = config.get("added_tokens_decoder", {})
    return {number: word for word, number in words.items()} | {int(k): v["content"] for k, v in added.items()}


def token_texts(folder: Path, tokens: Sequence[int]) -> list[str]:
    """The text of each token; bytes that are part of a character are shown with the token that completes it.

    Raises:
        CheckpointError: the folder has no readable vocabulary.
    """
    vocabulary, signs = _vocabulary(folder), _bytes_of_signs()
    texts: list[str] = []
    pending = b""
    for token in tokens:
        word = vocabulary.get(token, f"⟨{token}⟩")
        if all(sign in signs for sign in word):
            pending += bytes(signs[sign] for sign in word)
            try:
                texts.append(pending.decode())
                pending = b""
            except UnicodeDecodeError as error:
                complete = error.reason != "unexpected end of data"
                texts.append(pending.decode(errors="replace") if complete else "")
                pending = b"" if complete else pending
        else:
            texts.append(word)
    return texts
