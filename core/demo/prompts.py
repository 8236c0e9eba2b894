"""Lance's prompt template for the demo's two tasks, cut where the batched training forward needs it cut."""

from __future__ import annotations

from core.lance.prompts import IM_END, IM_START, INSTRUCTION_IMAGE, SYSTEM_EDIT, SYSTEM_PICTURE, SYSTEM_VIDEO

SYSTEM_TEXTS = (INSTRUCTION_IMAGE, SYSTEM_PICTURE, SYSTEM_VIDEO, SYSTEM_EDIT)
"""System prompts the tokenizer learns from."""

QUESTION_HEAD = f"{IM_START}system\n{INSTRUCTION_IMAGE}{IM_END}\n{IM_START}user\n"
"""Everything before the picture of a question."""

CAPTION_HEAD = f"{IM_START}system\n{SYSTEM_PICTURE}{IM_END}\n{IM_START}user\n"
"""Everything before the prompt of a picture to draw."""

TURN = f"{IM_END}\n{IM_START}assistant\n"
"""From the end of the user's text to where the assistant begins."""
