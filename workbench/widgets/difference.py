"""Word-level differences between a reference text and a variant's, as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|\s+|[^\w\s]")
_EXACT_UP_TO = 4000
"""Above so many words the matcher may use its heuristic for frequent words, which keeps it from being quadratic."""


@dataclass(frozen=True)
class Piece:
    """A stretch of both texts: equal in both, or what only one side has (either may be empty)."""

    equal: bool
    reference: str
    variant: str


def words(text: str) -> list[str]:
    """Numbers, words, blanks and single signs, which joined give ``text`` back."""
    return _WORD.findall(text)


def differences(reference: str, variant: str) -> list[Piece]:
    """The pieces of both texts in order; joining a side's parts gives that text back.

    A blank between two changed words counts as changed, so that a changed phrase is one piece and not several.
    """
    a, b = words(reference), words(variant)
    matcher = SequenceMatcher(None, a, b, autojunk=max(len(a), len(b)) > _EXACT_UP_TO)
    raw = [
        Piece(tag == "equal", "".join(a[i:j]), "".join(b[k:m])) for tag, i, j, k, m in matcher.get_opcodes()
    ]
    pieces: list[Piece] = []
    for index, piece in enumerate(raw):
        between = 0 < index < len(raw) - 1 and piece.equal and piece.reference == " "
        if between:
            piece = Piece(False, piece.reference, piece.variant)
        if pieces and pieces[-1].equal == piece.equal:
            last = pieces.pop()
            piece = Piece(piece.equal, last.reference + piece.reference, last.variant + piece.variant)
        pieces.append(piece)
    return pieces


def first_difference(reference: list[int], variant: list[int]) -> int | None:
    """The index of the first token at which two answers part, or None where they are the same."""
    for index, (left, right) in enumerate(zip(reference, variant, strict=False)):
        if left != right:
            return index
    return None if len(reference) == len(variant) else min(len(reference), len(variant))
