"""The comparison screen: the sides, the differences, and stepping through samples and variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.store import Store
from workbench import look
from workbench.comparison import Comparison


def marked(screen: Any, style: Any) -> list[str]:
    """The texts on screen that have a highlight's background."""
    return [
        segment.text
        for strip in screen.app.screen._compositor.render_strips()
        for segment in strip
        if segment.style is not None and segment.style.bgcolor == style.bgcolor and segment.style.underline
    ]


async def open_minmax(screen: Any) -> str:
    """Open the comparison of the min-max variant, the fourth run from the top."""
    return await screen.press("down", "down", "down", "enter")


async def test_enter_compares_a_run_with_its_baseline_stacked_below_100_columns(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        shown = await open_minmax(screen)
        lines = screen.lines()
        assert (
            "demo-x2t" in lines[1] and "sample 1 of 6" in lines[1] and "int4-minmax-g64 [1 of 2]" in lines[1]
        )
        assert (
            "Q  Question 0" in shown and "expected  Expected 0." in shown and "instruction  Answer" in shown
        )
        bf16 = next(number for number, line in enumerate(lines) if line.startswith(" bf16 ─"))
        variant = next(number for number, line in enumerate(lines) if line.startswith(" int4-minmax-g64 = ─"))
        assert variant > bf16 and lines[bf16 + 1].strip() == "Answer 0: No, it is 41."
        assert "exact ✓" in shown and "truth ✓ bf16 ✓ variant" in shown


async def test_two_sides_stand_beside_each_other_on_a_wide_screen(open_app: Any, database: Path) -> None:
    async with open_app(database, (200, 50)) as screen:
        await open_minmax(screen)
        await screen.press("N")
        line = next(line for line in screen.lines() if "Answer 1" in line)
        assert "it is 41." in line[:100] and "it is 44." in line[100:]
        rule = next(line for line in screen.lines() if line.startswith(" bf16 ─"))
        assert "int4-minmax-g64 ≠ ─" in rule


async def test_differing_words_are_highlighted_on_both_sides(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        assert marked(screen, look.ONLY_VARIANT) == []
        shown = await screen.press("N")
        assert "sample 2 of 6" in shown and "mismatch 1 of 2" in shown and "exact ✗" in shown
        assert "Levenshtein 0.97" in shown and "KL 0.2100 (max 1.90 at token 5)" in shown
        assert marked(screen, look.ONLY_REFERENCE) == ["41"]
        assert marked(screen, look.ONLY_VARIANT) == ["44"]


async def test_a_small_divergence_keeps_its_digits_and_the_line_its_end(
    open_app: Any, database: Path
) -> None:
    with Store.open(database) as store:
        store.execute("UPDATE outputs SET kl = 2.4e-6, kl_max = 1.3e-5 WHERE kl IS NOT NULL")
    async with open_app(database, (80, 24)) as screen:
        await open_minmax(screen)
        shown = await screen.press("N")
        assert "KL 2.4e-6 (max 1.3e-5 at token 5)   parts at token 5\n" in shown


async def test_stepping_through_samples_and_mismatches(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        assert "sample 2 of 6" in await screen.press("n")
        assert "sample 1 of 6" in await screen.press("p")
        assert "first sample" in await screen.press("p")
        assert "sample 5 of 6" in await screen.press("N", "N")
        assert "last sample that differs" in await screen.press("N")
        assert "sample 2 of 6" in await screen.press("P")


async def test_only_mismatches(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        shown = await screen.press("f")
        assert "sample 2 of 6" in shown and "only these" in shown
        assert "sample 5 of 6" in await screen.press("n")
        assert "only these" not in await screen.press("f")


async def test_switching_variants_stays_on_the_sample(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        await screen.press("N")
        shown = await screen.press("right_square_bracket")
        assert "int4-awq-g64 [2 of 2]" in shown and "sample 2 of 6" in shown and "exact ✓" in shown
        assert "int4-minmax-g64 [1 of 2]" in await screen.press("left_square_bracket")


async def test_marked_variants_stand_beside_bf16_together(open_app: Any, database: Path) -> None:
    async with open_app(database, (200, 50)) as screen:
        await screen.press("down", "down", "space", "space", "space", "c")
        rule = next(line for line in screen.lines() if line.startswith(" bf16 ─"))
        assert "int4-awq-g64 =" in rule and "int4-minmax-g64 =" in rule


async def test_marks_of_different_suites_are_one_line(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await screen.press("space", "down", "space")
        shown = await screen.press("c")
        assert "different suites (demo-t2i and demo-x2t)" in shown and "Traceback" not in shown


async def test_layouts_cycle_through_split_and_unified(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        await screen.press("N", "m")
        assert any("41." in line and "44." in line for line in screen.lines())
        shown = await screen.press("m")
        assert "bf16  →  int4-minmax-g64" in shown and "it is 4144." in shown
        assert marked(screen, look.ONLY_VARIANT)[-1] == "44"
        await screen.press("m")
        assert not any("41." in line and "44." in line for line in screen.lines())


async def test_long_answers_scroll_to_their_end_on_both_sides(open_app: Any, database: Path) -> None:
    async with open_app(database, (120, 40)) as screen:
        await open_minmax(screen)
        shown = await screen.press(*["n"] * 5)
        assert "Line 0 of a long answer" in shown and "Line 59" not in shown
        await screen.press("G")
        last = next(line for line in screen.lines() if "Line 59" in line)
        assert last.count("Line 59 of a long answer that nobody may cut.") == 2


async def test_wrapping_can_be_turned_off_and_lines_shift(open_app: Any, database: Path) -> None:
    with Store.open(database) as store:
        store.execute("UPDATE outputs SET text = ? WHERE idx = 0", ("word " * 60 + "END",))
    async with open_app(database) as screen:
        shown = await open_minmax(screen)
        assert "END" in shown
        assert "END" not in await screen.press("w")
        assert "END" in await screen.press(*["right"] * 40)


async def test_expected_and_picture_can_be_hidden(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        shown = await open_minmax(screen)
        assert "▀▀▀" in shown
        assert "▀▀▀" not in await screen.press("i")
        assert "Expected 0." not in await screen.press("b")


async def test_tokens_are_shaded_by_their_divergence(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        shown = await screen.press("h")
        assert "KL of int4-minmax-g64 at each bf16 token" in shown and "No, it is 41." in shown
        shaded = [
            segment.text.strip()
            for strip in screen.app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None and segment.style.bgcolor == look.heat(1.9).bgcolor
        ]
        assert "41" in shaded


async def test_a_report_of_every_sample_is_exported(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        assert "written" in await screen.press("e")
    (written,) = Path().glob("comparison-*.md")
    text = written.read_text()
    assert "Line 59 of a long answer" in text and text.count("### ") == 6 and "[-41.-]{+44.+}" in text


async def test_both_answers_are_copied(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        await open_minmax(screen)
        assert "copied both answers" in await screen.press("y")
        assert "bf16: Answer 0: No, it is 41." in screen.app.clipboard


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_pictures_stand_beside_each_other_with_their_scores(
    open_app: Any, database: Path, size: Any
) -> None:
    async with open_app(database, size) as screen:
        shown = await screen.press("enter")
        assert "PSNR 24.1 dB" in shown and "MAE 0.0310" in shown and "cosine 0.9810" in shown
        assert any(line.count("▀▀▀  ") == 1 and line.rstrip().endswith("▀") for line in screen.lines())
        assert "✓ green square" in shown and "✓ blue square" in shown
        assert "check differs 1 of 1" in await screen.press("N")
        assert "written" in await screen.press("enter")
    (written,) = Path().glob("pictures-*.png")
    with Image.open(written) as image:
        assert image.size == (40, 16)
        assert image.getpixel((0, 0)) == (0, 128, 0) and image.getpixel((39, 0)) == (0, 0, 255)


async def test_the_area_opens_on_the_newest_comparison(open_app: Any, database: Path) -> None:
    async with open_app(database) as screen:
        assert "demo-t2i" in (await screen.press("2")).splitlines()[1]
        assert "variant" in (await screen.press("escape")).splitlines()[2]


async def test_control_characters_of_an_answer_do_not_reach_the_terminal(
    open_app: Any, database: Path
) -> None:
    with Store.open(database) as store:
        store.execute(
            "UPDATE outputs SET text = ? WHERE idx = 0", ("red \x1b[31m alert \x07 \x1b]0;title\x07 done",)
        )
    async with open_app(database) as screen:
        shown = await open_minmax(screen)
        assert "red  alert ␇  done" in shown and "\x1b" not in shown


def test_runs_compared_without_their_baseline_bring_it_along(database: Path) -> None:
    with Store.open(database) as store:
        comparison = Comparison.of_runs(store, [2, 3])
        assert comparison.reference["id"] == 1 and [row["id"] for row in comparison.variants] == [2, 3]
        assert comparison.mismatches() == [1, 4]
        alone = Comparison.of_runs(store, [3])
        assert [row["id"] for row in alone.variants] == [2, 3] and alone.variant["id"] == 3
