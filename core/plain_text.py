"""Text of unknown origin (answers, names, notes, messages) made safe to print: it cannot steer a terminal."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) != "\n"}
_CONTROLS |= dict.fromkeys((*range(127, 160), 8234, 8235, 8236, 8237, 8238, 8294, 8295, 8296), "�")
_CONTROLS |= {0x2069: "�", 0x09: "    ", 0x0D: ""}


def visible(text: str) -> str:
    """``text`` without terminal sequences and with control characters shown; line feeds stay, a tab is four spaces."""
    return _SEQUENCE.sub("", text).translate(_CONTROLS)
