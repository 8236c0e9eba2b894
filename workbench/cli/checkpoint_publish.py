"""``checkpoints publish``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from core.plain_text import visible
from core.store.columns import size
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import json_option, print_fields, print_json, print_table
from workbench.places import absolute

if TYPE_CHECKING:
    from core.checkpoints.publish import Plan


@click.command("publish")
@click.argument("source")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="For everybody to see; else only for you and who you let in.")
@click.option("--revision", metavar="BRANCH", help="Publish to this branch, which is made if need be.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be sent; the Hub is not asked, nothing is verified."
)
@detach_option
@json_option
@click.pass_context
def publish_checkpoint(
    ctx: click.Context,
    source: str,
    repo: str,
    public: bool,
    revision: str | None,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Publish a checkpoint, variant or exported folder to the Hugging Face Hub, where only you see it unless you say
    --public.

    Every tensor is read and compared with its record first, and a folder that holds anything else than its layout is
    refused. The card gets a table of the evaluations of these files. What the Hub has already is not sent again. The
    token is that of `hf auth login`.
    """
    from core.checkpoints.publish import check_access, plan

    named = absolute(source)
    # What is plainly wrong is said now, before a job is queued.
    planned = plan(named, repo, ctx.obj.look(), public=public, revision=revision)
    if dry_run:
        if as_json:
            print_json(planned.to_json())
        else:
            _show_plan(planned)
        return
    check_access(repo)
    spec = {"checkpoint": named, "repo": repo, "public": public, "revision": revision, "device": "cpu"}
    run_job(ctx, "publish", spec, detach, as_json, show=_show)


def _show_plan(planned: Plan) -> None:
    told = planned.to_json()
    print_table(["file", "size"], [[name, size(count)] for name, count in planned.sizes.items()], ["size"])
    click.echo()
    print_fields(
        {
            "repository": f"{planned.repo} ({told['visibility']})",
            "branch": planned.branch,
            "files": len(planned.sizes),
            "size": size(planned.size_bytes),
            "evaluations": " ".join(map(str, planned.card.runs)),
        }
    )
    _notes(planned.card.remarks)


def _show(row: dict[str, Any]) -> None:
    """Print where it is now, and what of it was sent."""
    done = row["result"]
    print_fields(
        {
            "commit": done["commit"],
            "repository": f"{done['repository']} ({done['visibility']})",
            "branch": done["revision"],
            "sent": f"{len(done['sent'])} of {done['files']} files, {size(done['sent_bytes'])}",
            "evaluations": " ".join(map(str, done["evaluations"])),
        }
    )
    _notes(done["remarks"])


def _notes(remarks: Iterable[str]) -> None:
    for remark in remarks:
        click.echo(f"note: {visible(remark)}")
