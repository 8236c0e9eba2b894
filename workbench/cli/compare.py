"""``compare``: two evaluations sample by sample, as a table, markdown or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.session import Session, json_option, print_json, print_table

if TYPE_CHECKING:
    from core.evaluation.comparison import Comparison
    from core.evaluation.gate import Verdict
    from core.store import Store

FORMATS = ("table", "markdown", "json")


@click.command()
@click.argument("first")
@click.argument("second", required=False)
@click.option("--suite", help="Only this suite; otherwise every suite both were run on.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="table on the terminal, unless --json or the suffix of --out says otherwise.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file: .md with every whole output, its pictures in a folder beside it, or .json.",
)
@click.option(
    "--gate",
    "limits",
    metavar="SCORE=LIMIT,...",
    help="Exit with 1 unless every score keeps its limit, for example kl=0.05,top1=0.97: divergences and errors at "
    "most, agreement, similarity and PSNR at least. The measured value is compared; its interval is printed beside it.",
)
@json_option
@click.pass_obj
def command(
    session: Session,
    first: str,
    second: str | None,
    suite: str | None,
    format_: str | None,
    out: Path | None,
    limits: str | None,
    as_json: bool,
) -> None:
    """Compare SECOND with FIRST, or FIRST alone with the bf16 run it was scored against.

    Both are numbers of runs, or names of variants or checkpoints, which stand for their newest evaluations.
    """
    from core.errors import WorkbenchError
    from core.evaluation import gate
    from core.evaluation.choice import pairs
    from core.evaluation.comparison import compare

    chosen = _format(format_, out, as_json)
    gates = [] if limits is None else gate.parse(limits)
    store = session.open(readonly=True)
    found = pairs(store, first, second, suite) if second is not None else pairs(store, None, first, suite)
    comparisons = [compare(store, *pair) for pair in found]
    verdicts = gate.judge(gates, comparisons)
    if out is None:
        _print(comparisons, verdicts, chosen)
    else:
        _write(store, comparisons, verdicts, chosen, out)
    if verdicts and (out is not None or chosen != "json"):
        titles, rows = gate.table(verdicts)
        print_table(titles, rows, err=out is None and chosen == "markdown")
    if (failed := gate.failure(verdicts)) is not None:
        raise WorkbenchError(failed)


def _write(
    store: Store, comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], chosen: str, out: Path
) -> None:
    if chosen == "json":
        import json

        from core.files import write_text

        data = _data(comparisons, verdicts)
        write_text(out, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
        written = [out]
    else:
        from core.evaluation.documents import write_markdown

        written = write_markdown(store, comparisons, out)
    pictures = f" and {len(written) - 1} pictures" if len(written) > 1 else ""
    click.echo(f"{out}{pictures} written", err=True)


def _data(comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The comparisons as plain data, each with the verdicts on its suite where gates were given."""
    data = []
    for comparison in comparisons:
        own = [verdict.as_dict() for verdict in verdicts if verdict.suite == comparison.first["suite"]]
        data.append(comparison.as_dict() | ({"gates": own} if verdicts else {}))
    return data


def _format(given: str | None, out: Path | None, as_json: bool) -> str:
    if as_json:
        return "json"
    if given is not None:
        if given == "table" and out is not None:
            raise click.UsageError("--format table is for the terminal; write markdown or json with --out")
        return given
    if out is None:
        return "table"
    return "json" if out.suffix == ".json" else "markdown"


def _print(comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], chosen: str) -> None:
    if chosen == "json":
        print_json(_data(comparisons, verdicts))
    elif chosen == "markdown":
        from core.evaluation.report import markdown

        click.echo("\n".join(markdown(comparison) for comparison in comparisons), nl=False)
    else:
        for comparison in comparisons:
            _print_table(comparison)


def _print_table(comparison: Comparison) -> None:
    """The scores, then every sample in a line."""
    from core.evaluation import prose
    from core.evaluation.report import SAMPLE_SCORES
    from core.store import columns

    first, second = comparison.first, comparison.second
    differing = sum(pair.differs for pair in comparison.pairs)
    click.echo(
        f"run {second['id']} {second['name']} beside run {first['id']} {first['name']} on {first['suite']}: "
        f"{differing} of {len(comparison.pairs)} outputs differ"
    )
    scores = comparison.scores | prose.perplexity(second)
    known = columns.without_empty((*columns.COLUMNS, prose.COLUMN), [scores])
    print_table(
        ["score", "value"],
        [[column.title, columns.text(column, scores)] for column in known],
        ["value"],
    )
    shown = columns.without_empty(columns.chosen(SAMPLE_SCORES), [pair.scores for pair in comparison.pairs])
    titles = [column.title for column in shown]
    print_table(
        ["sample", "", *titles],
        [
            [
                pair.key,
                "≠" if pair.differs else "=",
                *(columns.value_text(c, pair.scores.get(c.key)) for c in shown),
            ]
            for pair in comparison.pairs
        ],
        titles,
    )
