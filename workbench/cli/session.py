"""What all verbs share: which database, ``--json``, and ways of printing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from core.plain_text import visible
from workbench.places import DEVICE, DEVICES

if TYPE_CHECKING:
    from core.store import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Session:
    """The options that stand before the noun, and the database they lead to. It is the ``ctx.obj`` of every
    verb."""

    def __init__(self, db: Path | None) -> None:
        self.db = db

    def open(self, *, create: bool = False, readonly: bool = False) -> Store:
        """Open the database, closing it when the command ends.

        Args:
            create: make it if it is not there, for verbs that add to it.
            readonly: never write, for verbs that only look.

        Raises:
            StoreError: it is missing, damaged, of a newer schema, or not a database.
        """
        from core.store import Store  # not for --help

        return self._until_the_end(Store.open(self.db, create=create, readonly=readonly))

    def look(self) -> Store:
        """Open the database for the checks before a verb adds to it: where there is none yet, an empty one in memory
        stands for it, so that a verb that is refused makes none.

        Raises:
            StoreError: it is damaged, of a newer schema, or not a database.
        """
        from core.store import Store  # not for --help

        return self._until_the_end(Store.look(self.db))

    @staticmethod
    def _until_the_end(store: Store) -> Store:
        click.get_current_context().call_on_close(store.close)
        return store


class GroupSize(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A number of weights, or the word for all of a row."""

    name = "integer|channel"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "channel" else click.IntRange(1).convert(value, param, ctx)


class Finite(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A number that is neither infinite nor not a number."""

    name = "number"

    def __init__(self, above: float = -math.inf) -> None:
        self.above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number) or number <= self.above:
            self.fail(
                f"{value} is no finite number{'' if self.above == -math.inf else f' above {self.above:g}'}"
            )
        return number


SEED = click.IntRange(0, 2**31 - 1)
"""A seed that every generator of random numbers takes."""


class Device(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A device to compute on, as far as its name goes."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not DEVICE.fullmatch(value):
            self.fail(f"{value!r}, wanted {DEVICES}")
        return value


DTYPE = click.Choice(["auto", "bfloat16", "float32"])


def device_option(command: _Command) -> _Command:
    """Add ``--device``."""
    help_text = f"{DEVICES}."
    return click.option("--device", type=Device(), default="auto", show_default=True, help=help_text)(command)


def dtype_option(command: _Command) -> _Command:
    """Add ``--dtype``."""
    return click.option("--dtype", type=DTYPE, default="auto", show_default=True, help="As what to compute.")(
        command
    )


def json_option(command: _Command) -> _Command:
    """Add ``--json``, passed to the function as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values under each other, leaving out what has no value."""
    shown = {key: value for key, value in fields.items() if value not in (None, "", [], {})}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        click.echo(f"{key.ljust(width)}  {visible(text)}")


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = (), *, err: bool = False
) -> None:
    """Print aligned text, on stderr for ``err``; the columns titled in ``right`` align to the right."""
    from core.store.export import plain_table

    ends = set(right)
    click.echo(plain_table(list(rows), titles, [title in ends for title in titles]), nl=False, err=err)
