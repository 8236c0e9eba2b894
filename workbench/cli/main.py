"""The root command: which nouns there are, the options before them, and the one place where errors become
exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from pathlib import Path

import click

from core.errors import UsageError, WorkbenchError
from core.plain_text import visible
from workbench.cli.session import Session
from workbench.trouble import of_system, unexpected

NOUNS: dict[str, str] = {
    "demo": "Run the main job on the embedded checkpoint and print its table.",
    "checkpoints": "List, show, verify, fetch, make and publish checkpoints.",
    "calibrations": "Run, merge, show and remove calibrations.",
    "variants": "Quantize checkpoints; list, show and remove variants.",
    "recipes": "List and show recipes.",
    "evaluate": "Run a checkpoint or variant over suites.",
    "compare": "Compare evaluations sample by sample.",
    "generate": "Ask about pictures and clips of yours; draw, film or edit.",
    "bench": "Measure speed and memory; show and export the figures.",
    "export": "Write a checkpoint or variant for transformers, MLX or Core ML.",
    "runs": "List, show, tag and export runs.",
    "jobs": "List, follow, cancel and retry jobs.",
    "doctor": "Check the installation, the machine and the database.",
    "completion": "Print the completion script of your shell.",
}
"""Every noun with its line of help. The module ``workbench.cli.<noun>`` has it as ``command``."""


class Nouns(click.Group):
    """A group that imports a noun's module when the noun is used, and lists nouns without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        command: click.Command = importlib.import_module(f"workbench.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in NOUNS and not ctx.resilient_parsing:
            ctx.fail(f"no command {name!r}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(NOUNS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from workbench.__main__ import version

        click.echo(f"lance-workbench {version()}")
        ctx.exit()


@click.command(
    cls=Nouns,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Without a command the app opens. Exit codes: 0 ok; 1 failed (a job, a gate, a check, or a file or "
    "database that cannot be used); 2 wrong usage (of options, or the name or number of something that is not "
    "there); 3 try again later; 130 interrupted.",
)
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    help="The database; else $LANCE_WORKBENCH_DB, ./runs.db if it is there, or one in your state folder.",
)
@click.option("--no-mouse", is_flag=True, help="Open the app without mouse support.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def root(ctx: click.Context, db: Path | None, no_mouse: bool) -> None:
    """Quantize Lance and see, sample by sample, what changed."""
    if no_mouse:
        raise click.UsageError("--no-mouse is for the app, which opens without a command")
    ctx.obj = Session(db)


def _misuse(error: click.UsageError) -> str:
    """What click found wrong, in one line with the next step."""
    text = " ".join(error.format_message().split()).removesuffix(".")
    if error.ctx is None:
        return text
    if isinstance(error.ctx.command, click.Group):
        text += f"; commands are {', '.join(error.ctx.command.list_commands(error.ctx))}"
    return f"{text}; see `{error.ctx.command_path} --help`"


def _failed(text: str, code: int) -> int:
    click.echo(f"error: {visible(' '.join(text.split()))}", err=True)
    return code


def _check_encoding(arguments: list[str]) -> None:
    """Refuse an argument with bytes that are no UTF-8, which Python keeps as surrogates: SQLite and JSON take none."""
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise UsageError(
                f"{shown}: is no UTF-8; rename the file, or give it a link with another name"
            ) from None


def run_command(arguments: list[str]) -> int:
    """Run one command; its exit code. Every error a user can meet ends here, as one line on stderr."""
    try:
        _check_encoding(arguments)
        code = root.main(arguments, prog_name="lance-workbench", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except WorkbenchError as error:
        return _failed(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        return _failed(_misuse(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader has seen enough, as in `runs list | head`. Python flushes stdout once more at exit: to
        # nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A name longer than a file's can be, a folder that may not be entered, a disk that fails.
        # A name too long for any file is one that was typed; the others are the machine's doing.
        typed = error.errno == errno.ENAMETOOLONG
        code = (UsageError if typed else WorkbenchError).exit_code
        return _failed(of_system(error) or unexpected(error), code)
    except Exception as error:
        return _failed(unexpected(error), WorkbenchError.exit_code)
