"""Texts of the demo as token arrays of fixed width, for batched training."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from core.demo.canvas import Question
from core.demo.prompts import CAPTION_HEAD, QUESTION_HEAD, TURN
from core.lance.prompts import IM_END, VISION_END, VISION_START

SEGMENT = 36
"""Tokens set aside for a question, the turn to the assistant and the answer with its end."""

ANSWER = 18
"""Tokens set aside for an answer with its end."""

CAPTION = 19
"""Tokens set aside for a caption."""

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


class Texts:
    """The demo's tokenizer with what batched training needs of it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Tokenizer = Qwen2Tokenizer.from_pretrained(folder)._tokenizer
        self.question_head = self.ids(QUESTION_HEAD)
        self.caption_head = self.ids(CAPTION_HEAD)
        self.turn = self.ids(TURN)
        (self.end,) = self.ids(IM_END)
        (self.vision_start,), (self.vision_end,) = self.ids(VISION_START), self.ids(VISION_END)

    @functools.lru_cache(maxsize=200_000)  # noqa: B019 - one instance a process
    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text``; special tokens in it are taken as such."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def segment(self, question: Question) -> tuple[Ints, int, int]:
        """A question as ``question <turn> answer <end>``.

        Returns:
            ids int16 [SEGMENT], padded with the end token; the index of the first answer token; how many answer tokens
            there are, the end included.
        """
        before = (*self.ids(question.text), *self.turn)
        answer = (*self.ids(question.answer), self.end)
        ids = np.full(SEGMENT, self.end, np.int16)
        ids[: len(before) + len(answer)] = before + answer
        return ids, len(before), len(answer)

    def caption(self, prompt: str) -> tuple[Ints, int]:
        """A caption's ids int16 [CAPTION], padded with the end token, and how many they are."""
        found = self.ids(prompt)
        ids = np.full(CAPTION, self.end, np.int16)
        ids[: len(found)] = found
        return ids, len(found)
