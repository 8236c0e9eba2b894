"""Exports byte for byte, and what no cell can do to a table."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.store import columns, export

ROWS = [
    {
        "id": 2, "name": "lance-demo_int4-awq-g64", "samples": 200, "bits": 4.375, "size_bytes": 8_143_210,
        "exact": 0.88, "exact_low": 0.8278, "exact_high": 0.9179, "kl": 0.03104, "kl_se": 0.00213,
        "duration_s": 72.4, "device": "CPU (2 cores)", "created_at": "2026-11-21T14:02:11.123Z",
        "note": "a|b `c` \\ *d* <e>\nsecond, \"line\"",
    },
    {
        "id": 1, "name": "lance-demo_bf16", "samples": 200, "bits": 16.0, "size_bytes": 19_800_000, "exact": None,
        "exact_low": None, "exact_high": None, "kl": None, "kl_se": None, "duration_s": 3723.0,
        "device": "CPU (2 cores)", "created_at": "2026-11-21T14:00:00.000Z", "note": None,
    },
]  # fmt: skip
KEYS = ("id", "name", "samples", "bits", "size_bytes", "exact", "kl", "duration_s", "created_at", "note")

MARKDOWN = r"""
| run | variant                 | samples | bits |    size |                 exact |              KL |     time | date             | note                                              |
| --: | ----------------------- | ------: | ---: | ------: | --------------------: | --------------: | -------: | ---------------- | ------------------------------------------------- |
|   2 | lance-demo_int4-awq-g64 |     200 |  4.4 |  8.1 MB | 88.0 % (82.8 to 91.8) | 0.0310 ± 0.0021 | 1 m 12 s | 2026-11-21 14:02 | a\|b \`c\` \\ \*d\* \<e\><br>second, "line" |
|   1 | lance-demo_bf16         |     200 | 16.0 | 19.8 MB |                     — |               — | 1 h 02 m | 2026-11-21 14:00 | —                                                 |

Proportions with their 95 % Wilson interval, means with their standard error. Device: CPU (2 cores). Made with lance-workbench 0.1.0, torch 2.11.0. Exported 2026-11-22 09:30 UTC.
"""  # noqa: E501

CSV = '''id,name,samples,bits,size_bytes,exact,exact_low,exact_high,kl,kl_se,duration_s,created_at,note
2,lance-demo_int4-awq-g64,200,4.375,8143210,0.88,0.8278,0.9179,0.03104,0.00213,72.4,2026-11-21T14:02:11.123Z,"a|b `c` \\ *d* <e>
second, ""line"""
1,lance-demo_bf16,200,16.0,19800000,,,,,,3723.0,2026-11-21T14:00:00.000Z,
'''  # noqa: E501


def _document(format_: str) -> str:
    versions = {"lance-workbench": "0.1.0", "torch": "2.11.0"}
    return export.table(ROWS, columns.chosen(KEYS), format_, versions, "2026-11-22T09:30:00.000Z")


def _squeezed(text: str) -> str:
    return re.sub(r"(?m) +(?=\|)|(?<=\|) +|(?<=-)-+", "", text)


def test_markdown_is_what_it_was() -> None:
    text = _document("markdown")
    assert _squeezed(text) == _squeezed(MARKDOWN.lstrip("\n"))
    lines = text.split("\n")
    assert len({len(line) for line in lines[:4]}) == 1, "the columns line up as text"


def test_csv_is_what_it_was() -> None:
    assert _document("csv") == CSV


def test_json_is_what_it_was() -> None:
    rows = json.loads(_document("json"))
    assert [row["exact_low"] for row in rows] == [0.8278, None]
    assert rows[0]["note"] == ROWS[0]["note"]
    assert list(rows[0]) == CSV.split("\n")[0].split(",")
    assert _document("json").startswith('[\n  {\n    "id": 2,\n    "name": "lance-demo_int4-awq-g64",\n')


def test_an_unknown_format_or_column_is_named() -> None:
    with pytest.raises(UsageError, match="'xlsx'"):
        _document("xlsx")
    with pytest.raises(UsageError, match="'colour'"):
        columns.chosen(["id", "colour"])


def _cells(line: str) -> list[str]:
    """Split a markdown row as GitHub does: at every pipe that no backslash stands before."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def _shown(cell: str) -> str:
    """What a renderer shows of an escaped cell."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.strip().replace("<br>", "\n"))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_cell_adds_a_column_or_a_row_to_markdown(cells: list[str]) -> None:
    titles = [f"t{i}" for i in range(len(cells))]
    text = export.markdown_table(titles, [cells, cells], [False] * len(cells))
    lines = text.splitlines()
    assert len(lines) == 4
    for line in lines:
        backslashes = re.findall(r"\\+\|", line)
        assert all(len(run) % 2 == 0 for run in backslashes), "a pipe in a cell is escaped, not its escape"
        assert len(_cells(line)) == len(cells)


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=30)
)
@settings(max_examples=300, deadline=None)
def test_markdown_shows_the_text_itself(text: str) -> None:
    assert _shown(export.markdown_cell(text)) == text.strip()


@given(
    st.lists(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_csv_reads_back(cells: list[str]) -> None:
    picked = columns.chosen(["name", "recipe", "suite", "note"][: len(cells)])
    row = dict(zip([column.key for column in picked], cells, strict=True))
    text = export.table([row, row], picked, "csv")
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [cells, cells]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1 m 00 s"),
        (72.4, "1 m 12 s"),
        (3599.6, "1 h 00 m"),
        (7500, "2 h 05 m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert columns.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999_960, "1.0 MB"), (19_800_000, "19.8 MB"), (6.4e12, "6.4 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert columns.size(count) == text


def test_the_interval_stands_beside_the_figure_on_screen() -> None:
    by = columns.BY_KEY
    assert columns.text(by["exact"], ROWS[0]) == "88.0 % ±4.5"
    assert columns.text(by["kl"], ROWS[0]) == "0.0310 ±0.0021"
    assert columns.text(by["kl"], ROWS[1]) == "—"
    assert columns.best(by["kl"], ROWS) == 0.03104
    assert columns.best(by["exact"], ROWS) == 0.88
    assert columns.best(by["note"], ROWS) is None


def test_small_figures_keep_their_digits() -> None:
    by = {column.key: column for column in columns.COLUMNS}
    row = {"kl": 7.73e-05, "kl_se": 2.6e-05}
    assert columns.text(by["kl"], row) == "7.7e-5 ±2.6e-5"
    assert columns.interval_text(by["kl"], row) == "7.7e-5 ± 2.6e-5"
    assert columns.text(by["kl"], {"kl": 0.0, "kl_se": 0.0}) == "0.0000 ±0.0000"
