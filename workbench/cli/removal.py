"""``variants remove`` and ``calibrations remove``: asking first, then deleting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from core import removal
from core.errors import Cancelled, UsageError
from core.plain_text import visible
from core.store import Store
from core.store.columns import size
from workbench.cli.session import Session, json_option, print_json, print_table
from workbench.removal import done, refers, what

_Command = TypeVar("_Command", bound=Callable[..., Any])


def removal_options(command: _Command) -> _Command:
    """Add the names, ``--yes`` and ``--json``, passed as ``names``, ``yes`` and ``as_json``."""
    command = click.option("--yes", "-y", is_flag=True, help="Do not ask.")(json_option(command))
    return click.argument("names", metavar="NAME...", nargs=-1, required=True)(command)


def remove_all(session: Session, kind: removal.Kind, names: Sequence[str], yes: bool, as_json: bool) -> None:
    """Remove what is registered under ``names`` or was begun under them, after a question unless ``yes``.

    Raises:
        UsageError: an unknown name, or nobody to ask; nothing was removed.
        Cancelled: the answer was no.
        RetryLater: a job uses one of them; those before it are removed.
    """
    store = session.open()
    found = [removal.find(store, kind, name) for name in dict.fromkeys(names)]
    if not yes:
        _ask(store, found)
    for each in found:
        removal.remove(store, each)
        if not as_json:
            click.echo(visible(done(each)))
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "path": str(each.path),
                    "size_bytes": each.size_bytes,
                    "finished": each.finished,
                    "left": [str(path) for path in each.left],
                }
                for each in found
            ]
        )


def _ask(store: Store, found: Sequence[removal.Removable]) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{found[0].name}: nobody can be asked here whether to remove it; give --yes")
    print_table(
        [found[0].kind, "size", "path"],
        [
            ["" if number else each.name, "" if number else size(each.size_bytes), str(path)]
            for each in found
            for number, path in enumerate(each.places)
        ],
        ["size"],
        err=True,
    )
    for each in found:
        remarks = "; ".join(filter(None, (what(each), refers(store, each))))
        click.echo(f"{visible(each.name)}: {visible(remarks)}", err=True)
    if not click.confirm("Remove for good?", err=True):
        raise Cancelled("nothing was removed")
