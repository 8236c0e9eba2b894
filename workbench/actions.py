"""Every action of the app as data: its key, its screen, and the command that does the same without the app.

Bindings, the key bar, the help and the command palette are made from this table; a test holds it against the
command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

AREAS: Final = ("runs", "compare", "jobs", "checkpoints", "bench")
"""The areas on keys 1 to 5, in order."""

SCREENS: Final = (*AREAS, "sensitivity")
"""The areas, and what opens from one of them and takes its place."""

TABLES: Final = ("runs", "jobs", "checkpoints", "bench", "sensitivity")
"""The screens whose main part is a table."""

OWN_FIRST: Final = 5
"""So many of a screen's own keys stand before those that every area has; the key bar shows as many as fit."""


@dataclass(frozen=True)
class Action:
    """One action: ``id`` is ``screen.method``; ``hint`` is its word in the key bar, empty where it has none."""

    id: str
    key: str
    title: str
    cli: str
    """The command that does the same, or that prints what the action shows."""
    hint: str = ""
    pair: str = ""
    """The key of the opposite action, which shares the word in the key bar."""

    @property
    def screen(self) -> str:
        """The screen it works on: an area, ``table`` (every table), ``form``, or ``app`` (everywhere)."""
        return self.id.partition(".")[0]

    @property
    def method(self) -> str:
        """The name of the screen's ``action_...`` method."""
        return self.id.partition(".")[2]

    @property
    def keys(self) -> str:
        """The key as a person writes it."""
        names = {"left_square_bracket": "[", "right_square_bracket": "]", "slash": "/", "question_mark": "?",
                 "escape": "esc"}  # fmt: skip
        return " ".join(names.get(key, key) for key in self.key.split(","))


_MEASURED: Final = "variants sensitivities"

ACTIONS: Final = (
    Action("app.area_runs", "1", "Go to runs", "runs list"),
    Action("app.area_compare", "2", "Go to compare", "compare"),
    Action("app.area_jobs", "3", "Go to jobs", "jobs list"),
    Action("app.area_checkpoints", "4", "Go to checkpoints", "checkpoints list"),
    Action("app.area_bench", "5", "Go to bench", "bench show"),
    Action("app.new_job", "n", "Start a new job", "evaluate", "new job"),
    Action("app.palette", "ctrl+p", "Find a command", "--help"),
    Action("app.help", "question_mark", "Help of this screen", "--help", "help"),
    Action("app.leave", "q", "Quit; jobs keep running", "jobs list", "quit"),
    Action("table.top", "g", "First row", "runs list"),
    Action("table.bottom", "G", "Last row", "runs list"),
    Action("runs.open", "enter", "Compare the run with its bf16 run", "compare", "open"),
    Action("runs.mark", "space", "Mark the run", "compare", "mark"),
    Action("runs.compare", "c", "Compare the marked runs", "compare", "compare"),
    Action("runs.filter", "slash", "Filter the runs", "runs list", "filter"),
    Action("runs.sort", "s", "Sort by the column under the cursor; again: reverse", "runs list", "sort"),
    Action("runs.differing", "d", "Only columns that differ", "runs list", "differing"),
    Action("runs.columns", "o", "Choose columns", "runs export", "columns"),
    Action("runs.export", "e", "Export the table as markdown", "runs export", "export"),
    Action("runs.tags", "t", "Tags and note of the run", "runs tag", "tags"),
    Action("runs.copy", "y", "Copy the run as markdown", "runs export"),
    Action("compare.next", "n", "Next sample", "compare", "sample", "p"),
    Action("compare.previous", "p", "Previous sample", "compare"),
    Action("compare.next_mismatch", "N", "Next sample that differs", "compare", "mismatch", "P"),
    Action("compare.previous_mismatch", "P", "Previous sample that differs", "compare"),
    Action("compare.previous_variant", "left_square_bracket", "Previous variant", "compare", "variant", "]"),
    Action("compare.next_variant", "right_square_bracket", "Next variant", "compare"),
    Action("compare.layout", "m", "Split, unified or automatic layout", "compare", "layout"),
    Action("compare.mismatches", "f", "Only samples that differ", "compare", "only ≠"),
    Action("compare.likelihood", "h", "Shade the tokens by their KL divergence", "compare", "KL"),
    Action("compare.picture", "i", "Show or hide the picture", "compare", "picture"),
    Action("compare.expected", "b", "Show or hide the expected answer", "compare", "expected"),
    Action("compare.wrap", "w", "Wrap long lines", "compare"),
    Action("compare.export", "e", "Export a report of every sample", "compare", "export"),
    Action("compare.write", "enter", "Write both pictures beside each other as PNG", "compare"),
    Action("compare.copy", "y", "Copy both answers", "compare"),
    Action("compare.back", "escape", "Back to the runs", "runs list"),
    Action("jobs.log", "enter", "To the log and back", "jobs log", "log"),
    Action("jobs.cancel", "x", "Cancel the job; again: kill it", "jobs cancel", "cancel"),
    Action("jobs.retry", "r", "Run the job again", "jobs retry", "retry"),
    Action("jobs.all", "a", "All jobs or only active ones", "jobs list", "all/active"),
    Action("jobs.sensitivity", "S", "Show what a sensitivity job measured", _MEASURED, "result"),
    Action("jobs.copy", "y", "Copy the job's log path", "jobs show"),
    Action("checkpoints.verify", "v", "Verify the files", "checkpoints verify", "verify"),
    Action(
        "checkpoints.publish", "u", "Publish it on the Hugging Face Hub", "checkpoints publish", "publish"
    ),
    Action("checkpoints.sensitivity", "S", "Show where recipes hurt it", _MEASURED, "sensitivity"),
    Action("checkpoints.open", "enter", "Show the runs of this row", "runs list", "its runs"),
    Action(
        "checkpoints.remove",
        "x",
        "Remove the variant or calibration",
        "variants remove",
        "remove",
    ),
    Action("checkpoints.copy", "y", "Copy the path", "checkpoints show"),
    Action("bench.open", "enter", "To the figures and back", "bench show", "figures"),
    Action("bench.mark", "space", "Mark the run: marked runs stand beside each other", "bench show", "mark"),
    Action("bench.start", "b", "Start a benchmark", "bench", "start"),
    Action("bench.export", "e", "Export the run's figures as markdown", "bench export", "export"),
    Action("bench.copy", "y", "Copy the run's figures as markdown", "bench export"),
    Action("sensitivity.section", "tab", "Next table: layers, groups, linears", _MEASURED, "table"),
    Action("sensitivity.sort", "s", "Sort by the column under the cursor; again: reverse", _MEASURED, "sort"),
    Action("sensitivity.previous_result", "left_square_bracket", "Previous result", _MEASURED, "result", "]"),
    Action("sensitivity.next_result", "right_square_bracket", "Next result", _MEASURED),
    Action("sensitivity.export", "e", "Export all tables as markdown", _MEASURED, "export"),
    Action("sensitivity.copy", "y", "Copy the table as markdown", _MEASURED),
    Action("sensitivity.back", "escape", "Back", "checkpoints list", "back"),
    Action("form.start", "ctrl+s", "Start the job", "evaluate", "start"),
    Action("form.close", "escape", "Close the form", "--help", "close"),
)


def of_screen(screen: str) -> list[Action]:
    """The actions on a screen, its own first, without those that are everywhere."""
    own = [action for action in ACTIONS if action.screen == screen]
    return own + [action for action in ACTIONS if action.screen == "table" and screen in TABLES]


def everywhere() -> list[Action]:
    """The actions that every area has."""
    return [action for action in ACTIONS if action.screen == "app"]


def hints(screen: str) -> list[tuple[str, str]]:
    """Keys and words of the key bar: the screen's first ones, those of every area, its others; help comes last."""
    own = [
        (" ".join(filter(None, (action.keys, action.pair))), action.hint)
        for action in of_screen(screen)
        if action.hint
    ]
    taken = {key for keys, _ in own for key in keys.split()}
    shared = [
        (action.keys, action.hint) for action in everywhere() if action.hint and action.keys not in taken
    ]
    ordered = own[:OWN_FIRST] + shared + own[OWN_FIRST:]
    return sorted(ordered, key=lambda pair: pair[0] == "?")
