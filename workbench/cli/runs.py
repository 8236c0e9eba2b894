"""``runs list|show|tag|export``: the run table without the app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from core.store import columns as table_columns
from core.store import export
from workbench.cli.session import Session, json_option, print_fields, print_json, print_table

_FILTER_HELP = (
    "FILTER is what the app's filter line takes: words, key:part, key=value, kl<0.1, and -term for all but those "
    "(write -- before the first such term)."
)


@click.group()
def command() -> None:
    """List, show, tag and export runs."""


def _window_options(function: Any) -> Any:
    for option in (
        click.argument("filter_words", metavar="[FILTER]...", nargs=-1),
        click.option(
            "--columns",
            metavar="KEY,KEY,…",
            help="The columns, in this order; `--columns all` for every one.",
        ),
        click.option(
            "--sort", default="id", show_default=True, metavar="KEY", help="Sort by this column, best first."
        ),
        click.option("--reverse", is_flag=True, help="Sort the other way round."),
        click.option("--offset", default=0, type=click.IntRange(0), help="Leave out this many rows first."),
    ):
        function = option(function)
    return function


def _chosen(text: str | None) -> list[table_columns.Column]:
    if text == "all":
        return list(table_columns.COLUMNS)
    return table_columns.chosen(
        None if text is None else [key.strip() for key in text.split(",") if key.strip()]
    )


def _descending(sort: str, reverse: bool) -> bool:
    """Best, newest or largest first; text in the order of the alphabet."""
    column = table_columns.BY_KEY.get(sort)
    ascending = column is not None and (column.better == "lower" or column.format == "text")
    return ascending == reverse


@command.command("list", epilog=_FILTER_HELP)
@_window_options
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1), help="Show at most this many rows."
)
@json_option
@click.pass_obj
def list_runs(
    session: Session,
    filter_words: tuple[str, ...],
    columns: str | None,
    sort: str,
    reverse: bool,
    offset: int,
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    store = session.open(readonly=True)
    text = " ".join(filter_words)
    chosen = _chosen(columns)
    rows = store.runs(text, sort, _descending(sort, reverse), limit, offset)
    if as_json:
        print_json(
            rows if columns is None else [{column.key: row[column.key] for column in chosen} for row in rows]
        )
        return
    if columns is None:
        chosen = table_columns.without_empty(chosen, rows) or chosen
    print_table(
        [column.title for column in chosen],
        [[table_columns.text(column, row) for column in chosen] for row in rows],
        [column.title for column in chosen if column.align == "right"],
    )
    total = store.count_runs(text)
    if total > len(rows):
        click.echo(f"{len(rows)} of {total} runs; --limit and --offset show others", err=True)


@command.command("show")
@click.argument("run_id", metavar="RUN", type=int)
@click.option("--outputs", is_flag=True, help="Every sample's output too.")
@json_option
@click.pass_obj
def show_run(session: Session, run_id: int, outputs: bool, as_json: bool) -> None:
    """Show one run: its figures, its manifest, and with --outputs what it answered."""
    store = session.open(readonly=True)
    row = store.run(run_id)
    samples = store.outputs(run_id) if outputs else []
    if as_json:
        print_json({**row, "outputs": samples} if outputs else row)
        return
    manifest = row.pop("manifest") or {}
    figures = {column.key: column for column in table_columns.COLUMNS}
    parts = {key for column in table_columns.COLUMNS for key in column.interval}
    print_fields(
        {
            key: table_columns.interval_text(figures[key], row)
            if key in figures and value is not None
            else value
            for key, value in row.items()
            if key not in parts
        }
    )
    print_fields({f"manifest.{key}": value for key, value in manifest.items()})
    for sample in samples:
        click.echo()
        print_fields(
            {key: value for key, value in sample.items() if key not in ("run_id", "tokens", "kl_tokens")}
        )


@command.command("tag")
@click.argument("run_id", metavar="RUN", type=int)
@click.option("--tags", help="The run's tags; an empty text removes them.")
@click.option("--note", help="The run's note; an empty text removes it.")
@json_option
@click.pass_obj
def tag_run(session: Session, run_id: int, tags: str | None, note: str | None, as_json: bool) -> None:
    """Set a run's tags and note."""
    given = {key: value or None for key, value in (("tags", tags), ("note", note)) if value is not None}
    if not given:
        raise click.UsageError("give --tags, --note or both")
    store = session.open()
    store.update_run(run_id, **given)
    row = store.run(run_id)
    found = {"id": run_id, "tags": row["tags"], "note": row["note"]}
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@command.command("export", epilog=_FILTER_HELP)
@_window_options
@click.option(
    "--format",
    "format_",
    type=click.Choice(export.FORMATS),
    help="markdown unless --json or --output says otherwise.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file; its suffix may say the format.",
)
@click.option("--limit", type=click.IntRange(1), help="Export at most this many rows.")
@json_option
@click.pass_obj
def export_runs(
    session: Session,
    filter_words: tuple[str, ...],
    columns: str | None,
    sort: str,
    reverse: bool,
    offset: int,
    format_: str | None,
    output: Path | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Export runs as markdown, csv or json: these columns, rows and order, intervals included."""
    suffixes = {".md": "markdown", ".csv": "csv", ".json": "json"}
    chosen_format = (
        "json" if as_json else format_ or suffixes.get(output.suffix if output else "", "markdown")
    )
    store = session.open(readonly=True)
    rows = store.runs(" ".join(filter_words), sort, _descending(sort, reverse), limit, offset)
    chosen = _chosen(columns)
    if columns is None:
        chosen = table_columns.without_empty(chosen, rows) or chosen
    versions: dict[str, str] = {}
    if chosen_format == "markdown":
        versions = export.versions_of(store.run(row["id"])["manifest"] or {} for row in rows)
    text = export.table(rows, chosen, chosen_format, versions)
    if output is None:
        click.echo(text, nl=False)
        return
    from core.files import write_text

    write_text(output, text)
    click.echo(f"{len(rows)} runs written to {output}", err=True)
