"""What a token is for, so that calibration can weigh answers, prompts, pictures and latents on their own."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """Role of one token; the markers around a visual block count as text."""

    TEXT = 0
    VIT = 1
    ANSWER = 2
    NOISY = 3
    CLEAN = 4
