"""The pure parts: word differences, wrapping, sides, tokens, number formats, log files, half blocks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.errors import CheckpointError, DataError
from workbench import look
from workbench.cells import clip, number, proportion, with_error
from workbench.tokens import token_texts
from workbench.widgets.difference import differences, first_difference
from workbench.widgets.log import LogFile
from workbench.widgets.picture import fitted, half_blocks, opened
from workbench.widgets.sides import Side, split, stacked, unified
from workbench.widgets.text import visible, wrapped


def test_a_changed_number_is_one_changed_word() -> None:
    pieces = differences("No, it is 41.5 %.", "No, it is 44.5 %.")
    assert [(piece.reference, piece.variant) for piece in pieces if not piece.equal] == [("41.5", "44.5")]


def test_a_changed_phrase_is_one_piece() -> None:
    pieces = differences("the red small circle", "the blue large circle")
    assert [(piece.reference, piece.variant) for piece in pieces if not piece.equal] == [
        ("red small", "blue large")
    ]


@given(st.text(), st.text())
def test_joining_the_pieces_gives_both_texts_back(reference: str, variant: str) -> None:
    pieces = differences(reference, variant)
    assert "".join(piece.reference for piece in pieces) == reference
    assert "".join(piece.variant for piece in pieces) == variant
    assert all(piece.reference == piece.variant for piece in pieces if piece.equal)


def test_where_two_answers_part() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 12))
def test_wrapping_keeps_every_letter_and_never_exceeds_the_width(text: str, width: int) -> None:
    lines = ["".join(part for part, _ in line) for line in wrapped([(text, look.PLAIN)], width)]
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_a_word_of_two_styles_is_not_torn_apart() -> None:
    lines = wrapped([("some wo", look.PLAIN), ("rds", look.BOLD)], 8)
    assert [[text for text, _ in line] for line in lines] == [["some", " "], ["wo", "rds"]]


def test_equal_paragraphs_stand_at_the_same_height() -> None:
    reference = Side("bf16", "short\nlast")
    variant = Side("int4", "a much longer first paragraph that needs several lines\nlast")
    lines, marks = split(reference, [variant], 40, True)
    last = [line.text for line in lines if "last" in line.text]
    assert len(last) == 1 and last[0].count("last") == 2
    assert marks and max(marks) < len(lines) - 1


def test_an_empty_answer_is_said() -> None:
    for lines, _ in (
        split(Side("bf16", "yes"), [Side("int4", "")], 60, True),
        stacked(Side("bf16", "yes"), [Side("int4", "")], 60, True),
    ):
        assert any("(empty answer)" in line.text for line in lines)


def test_unified_shows_both_wordings_in_one_text() -> None:
    lines, marks = unified(Side("bf16", "it is red"), Side("int4", "it is blue"), 60, True)
    assert lines[1].text == "it is redblue" and marks == {1}


def test_terminal_sequences_are_dropped_and_controls_shown() -> None:
    assert visible("a\x1b[2Jb\x1b]52;c;AAAA\x07c\rd\te\x00") == "abcd    e␀"


def test_figures_of_a_column_align() -> None:
    cells = [
        with_error(value, error, 4, 15) for value, error in ((0.031, 0.0021), (12.5, None), (None, None))
    ]
    assert [cell.find(".") for cell in cells[:2]] == [2, 2] and cells[2][1] == "—"
    assert {len(cell) for cell in cells} == {15}
    assert proportion(0.88, 0.828, 0.918) == " 88.0 % ±4.5 "
    assert proportion(1.0, 0.7, 1.0) == "100.0 % ±15.0" and proportion(None, None, None).strip() == "—"
    assert number(16, 1, 5) == " 16.0"


def test_clipping_counts_wide_characters_and_marks_the_cut() -> None:
    assert clip("abcdef", 4) == "abc…" and clip("ab", 4) == "ab  " and clip("日本語", 4) == "日 …"


def test_tokens_are_read_from_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"Ġred": 0, "Ã": 1, "¤": 2, "Ċ": 3}))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"9": {"content": "<|im_end|>"}}}'
    )
    assert token_texts(tmp_path, [0, 1, 2, 3, 9, 7]) == [" red", "", "ä", "\n", "<|im_end|>", "⟨7⟩"]


def test_a_checkpoint_without_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        token_texts(tmp_path, [0])


def test_a_log_grows_by_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = LogFile(path)
    assert not log.grow() and len(log) == 0
    path.write_bytes(b"one\n10%\r50%\rdone\nhal")
    assert log.grow() and len(log) == 3 and log.lines(0, 9) == ["one", "done", "hal"]
    with path.open("ab") as stream:
        stream.write(b"f\n")
    assert log.grow() and len(log) == 3 and log.lines(2, 1) == ["half"]
    assert not log.grow()
    path.write_text("anew\n")
    assert log.grow() and log.lines(0, 9) == ["anew"]


def test_half_blocks_hold_two_pixels_a_cell() -> None:
    image = Image.new("RGB", (4, 4), "red")
    image.paste((0, 0, 255), (0, 2, 4, 4))
    lines = half_blocks(image, 4, 2)
    assert [line.text for line in lines] == ["▀▀▀▀", "▀▀▀▀"]
    assert fitted(224, 224, 40, 10) == (20, 10) and fitted(100, 400, 40, 10) == (5, 10)


def test_bytes_that_are_no_picture_are_named() -> None:
    with pytest.raises(DataError, match="picture abc"):
        opened(b"no picture", "picture abc")
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(buffer, "PNG")
    assert opened(buffer.getvalue(), "x").getpixel((0, 0)) == (255, 255, 255)


def test_shades_rise_with_the_divergence() -> None:
    shades = [look.heat(value) for value in (None, 0.0, 0.002, 0.02, 0.2, 0.7, 5.0)]
    assert shades[0] == shades[1] == look.PLAIN and len(set(map(str, shades[1:]))) == 6
    assert look.bar(0.5, 8) == "████····" and look.bar(1.0, 3) == "███" and len(look.bar(0.33, 8)) == 8


def test_small_means_keep_their_digits() -> None:
    assert with_error(7.73e-05, 2.6e-05, 4, 15) == " 7.7e-5 ±2.6e-5"
    assert with_error(0.031, 0.002, 4, 17).strip() == "0.0310 ±0.0020"
