"""The text scores: lance-quant's published cases to its two printed digits, and their defining properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation import text_scores

# Answers of bf16 and of a 4-bit variant as lance-quant printed them whole, with the scores it printed.
PUBLISHED = [
    (
        "Yes, the largest segment is in the blue color, indicating a significant difference in the "
        "number of people who worked on STEM (Study of Management, Finance, Engineering, or Math) "
        "in each of the other segments.",
        "Yes, the largest segment is greater than the sum of all the other segments.",
        (0.32, 0.44, 0.25),
    ),
    (
        "According to the data from the proprietary market research, the total amount spent on the "
        "promotional meetings and events during 1998 was approximately $1.3 billion.",
        "According to the data from the proprietary market research, the medical and scientific "
        "plan was 2000 dollars in revenue. During the 1990s, Scott Levin and his family were "
        "involved in the promotional activities, and the medical and scientific plan was expected "
        "to spend around 1.3 billion in revenue. During the 1990s, the medical and scientific plan "
        "also had a significant impact on the healthcare industry, with its contributions to the "
        "development of new products and services.",
        (0.30, 0.27, 0.23),
    ),
]


@pytest.mark.parametrize(("reference", "candidate", "expected"), PUBLISHED)
def test_published_cases(reference: str, candidate: str, expected: tuple[float, float, float]) -> None:
    scores = text_scores.score(reference, candidate)
    assert (scores.levenshtein, scores.ratio, scores.jaccard) == pytest.approx(expected, abs=0.005)
    assert scores.exact == 0.0


def test_by_hand() -> None:
    scores = text_scores.score("The cat sat", "the cat sits")
    # 3 edits over 12 characters; blocks "he cat s" and "t" match: 2 * 9 / 23; {the, cat} of 4 words
    assert scores.levenshtein == pytest.approx(1 - 3 / 12)
    assert scores.ratio == pytest.approx(18 / 23)
    assert scores.jaccard == pytest.approx(2 / 4)


def test_text_ends_at_the_end_of_turn() -> None:
    assert text_scores.cut("  29% <|im_end|> more <|im_end|>") == "29%"
    assert text_scores.score("29%", "29%<|im_end|>garbage").exact == 1.0


def test_empty_texts() -> None:
    both = text_scores.score("", "<|im_end|>")
    assert (both.exact, both.levenshtein, both.ratio, both.jaccard) == (1.0, 1.0, 1.0, 1.0)
    one = text_scores.score("29%", "")
    assert (one.exact, one.levenshtein, one.ratio, one.jaccard) == (0.0, 0.0, 0.0, 0.0)


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_lie_between_0_and_1_and_are_symmetric(left: str, right: str) -> None:
    there, back = text_scores.score(left, right), text_scores.score(right, left)
    for value in (there.exact, there.levenshtein, there.ratio, there.jaccard):
        assert 0.0 <= value <= 1.0
    assert (there.exact, there.levenshtein, there.jaccard) == (back.exact, back.levenshtein, back.jaccard)


@given(st.text(max_size=400))
def test_identity_scores_1(text: str) -> None:
    same = text_scores.score(text, text)
    assert (same.exact, same.levenshtein, same.ratio, same.jaccard) == (1.0, 1.0, 1.0, 1.0)
