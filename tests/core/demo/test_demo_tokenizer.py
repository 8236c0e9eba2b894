"""The shipped tokenizer is what training writes; it keeps every text and spells numbers digit by digit."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from core.demo import CHECKPOINT, tokenizer
from core.demo.canvas import Question
from core.demo.captions import caption
from core.demo.drawing import FAMILIES, scene
from core.demo.texts import SEGMENT, Texts
from core.lance.loading import load_tokenizer

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_tokenizer(CHECKPOINT)


def test_training_anew_writes_the_shipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Texts do not depend on pixels: pens that stand still write the same corpus in a tenth of the time.
    for name in ("polygon", "ellipse", "pieslice", "rectangle", "rounded_rectangle", "text", "line"):
        monkeypatch.setattr(ImageDraw.ImageDraw, name, lambda *_arguments, **_options: None)
    monkeypatch.setattr(Image.Image, "resize", lambda image, *_arguments: image)
    tokenizer.write(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (CHECKPOINT / name).read_bytes(), name


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_composed_text_comes_back(shipped: Any, text: str) -> None:
    ids = shipped(text, add_special_tokens=False)["input_ids"]
    # Qwen2's tokenizer composes characters first.
    composed = unicodedata.normalize("NFC", text)
    assert shipped.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == composed
    assert all(0 <= token < tokenizer.VOCAB_ROWS for token in ids)


def test_special_tokens_come_last_in_lances_order(shipped: Any) -> None:
    vocab = json.loads((CHECKPOINT / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocab.values()) == list(range(tokenizer.ENTRIES))
    ids = [shipped.convert_tokens_to_ids(token) for token in tokenizer.SPECIALS]
    assert ids == list(range(tokenizer.ENTRIES, tokenizer.VOCAB_ROWS))
    assert all(
        shipped(t, add_special_tokens=False)["input_ids"] == [i]
        for t, i in zip(tokenizer.SPECIALS, ids, strict=True)
    )


@given(st.text("0123456789", min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_every_digit_is_a_token_of_its_own(shipped: Any, number: str) -> None:
    ids = shipped(number, add_special_tokens=False)["input_ids"]
    assert [shipped.decode([token]) for token in ids] == list(number)


def test_drawn_texts_fit_the_room_set_aside() -> None:
    texts = Texts(CHECKPOINT)
    for family in FAMILIES:
        for seed in range(10):
            for question in scene(family, seed).questions:
                ids, start, count = texts.segment(question)
                assert start + count <= SEGMENT
                assert tuple(ids[start : start + count]) == (*texts.ids(question.answer), texts.end)
    for seed in range(100):
        prompt = caption(seed).prompt
        ids, length = texts.caption(prompt)
        assert tuple(ids[:length]) == texts.ids(prompt)


def test_a_text_too_long_for_its_room_is_not_cut_silently() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        Texts(CHECKPOINT).segment(Question("sign-text", "What does the sign say? " * 9, "STOP"))
