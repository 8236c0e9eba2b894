"""``evaluate``: a checkpoint or variant over suites, as a job."""

from __future__ import annotations

from typing import Any

import click

from core.errors import UsageError
from core.store import Store
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import Session, device_option, dtype_option, json_option, print_table
from workbench.places import absolute, absolute_suite


@click.command()
@click.argument("checkpoint")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME|FILE",
    help="A suite by name, or a JSON or JSON lines file in Lance's own format; text (which comes with the workbench) "
    "or text:FILE measures the perplexity of running text. May be given several times. Without it, the "
    "suites that the embedded checkpoint was trained for, and of a causal LM the text.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many samples of each suite.")
@click.option(
    "--baseline",
    default="auto",
    show_default=True,
    metavar="auto|none|RUN",
    help="The bf16 run to score against: auto finds that of the same samples and settings, and runs it first "
    "where there is none; none scores against the truth alone.",
)
@device_option
@dtype_option
@click.option("--resolution", help="Size preset for pictures looked at, such as image_256res.")
@detach_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    checkpoint: str,
    suites: tuple[str, ...],
    limit: int | None,
    baseline: str,
    device: str,
    dtype: str,
    resolution: str | None,
    detach: bool,
    as_json: bool,
) -> None:
    """Run CHECKPOINT (a checkpoint or variant, by name or folder) over suites and record every output.

    Scores are against the bf16 run of the same samples and, where it is known, against the truth.
    """
    from core.evaluation import baseline as baselines
    from core.evaluation import conditions
    from core.evaluation import suites as known
    from core.evaluation.subject import check_suite, open_subjects

    session: Session = ctx.obj
    store, against = session.look(), _baseline(baseline)
    _, source, info = open_subjects(checkpoint, store, alone=against is None)
    usual = [known.PROSE] if info.family == "huggingface" else known.DEFAULT_SUITES
    names = [absolute_suite(name) for name in suites or usual]
    # Looked at here too, so that a mistyped name or a suite of another family is an answer and not a failed job.
    for name in names:
        suite = known.load(name, limit)
        check_suite(info, suite)
        settings = conditions.settings_of(info, suite, resolution)
        if isinstance(against, int):
            evaluation = conditions.shared(suite, settings, source.fingerprint)
            baselines.chosen(store, against, suite.name, evaluation)
    spec: dict[str, Any] = {
        "checkpoint": absolute(checkpoint),
        "suites": names,
        "limit": limit,
        "baseline": against,
        "device": device,
        "dtype": dtype,
        "resolution": resolution,
    }

    def show(row: dict[str, Any]) -> None:
        result = row["result"]
        show_runs(session.open(), [*result["baselines"], *result["runs"]])

    run_job(ctx, "evaluate", spec, detach, as_json, show=show)


def _baseline(text: str) -> str | int | None:
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if text.isascii() and text.isdigit() and len(text) < 19:  # what SQLite has room for
        return int(text)
    raise UsageError(f"baseline {text!r}: wanted auto, none or the number of a run")


def show_runs(store: Store, runs: list[int]) -> None:
    """Print the figures of evaluations, a table for each task."""
    from core.evaluation import prose
    from core.store import columns

    rows = [row | prose.perplexity(row) for row in map(store.run, runs)]
    for task in dict.fromkeys(row["task"] for row in rows):
        same = [row for row in rows if row["task"] == task]
        chosen = columns.without_empty((*columns.chosen(_COLUMNS), prose.COLUMN), same)
        print_table(
            [column.title for column in chosen],
            [[columns.text(column, row) for column in chosen] for row in same],
            [column.title for column in chosen if column.align == "right"],
        )


_COLUMNS = (
    "id", "name", "bits", "size_bytes", "suite", "samples", "exact", "truth", "kl", "kl_p99", "top1", "nll",
    "psnr", "mae", "cosine", "velocity", "pixel", "seconds",
)  # fmt: skip
