"""The entry point: no arguments open the app, anything else is a command.

The app's first paint is counted from here, so neither path imports what only the other needs.
"""

from __future__ import annotations

import os
import sys

COMPLETION_VARIABLE = "_LANCE_WORKBENCH_COMPLETE"


def _app_options(arguments: list[str]) -> dict[str, object] | None:
    """The app's options if ``arguments`` ask for the app (nothing, ``--db PATH``, ``--no-mouse``), else
    None."""
    from pathlib import Path

    options: dict[str, object] = {"db_path": None}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--no-mouse":
            options["mouse"] = False
        elif word == "--db" and rest:
            options["db_path"] = Path(rest.pop(0))
        elif word.startswith("--db="):
            options["db_path"] = Path(word.removeprefix("--db="))
        else:
            return None
    return options


def version() -> str:
    """The installed version, or ``source`` in a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("lance-workbench")
    except metadata.PackageNotFoundError:
        return "source"


def main() -> int:
    """Run the app or the command that the command line asks for; the exit code."""
    try:
        return _run()
    except KeyboardInterrupt:  # while something is imported; commands and the app see to the others
        print("interrupted", file=sys.stderr)
        return 130


def _run() -> int:
    if sys.argv[1:] == ["--version"]:
        print(f"lance-workbench {version()}")
        return 0
    options = None if COMPLETION_VARIABLE in os.environ else _app_options(sys.argv[1:])
    if options is None:
        from workbench.cli.main import run_command

        return run_command(sys.argv[1:])
    from workbench.app import run

    return run(**options)  # type: ignore[arg-type]  # the keys are run's own parameters


if __name__ == "__main__":
    sys.exit(main())
