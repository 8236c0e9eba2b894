"""Starting the terminal app: the database is opened and its first runs shown, and only then Textual imported."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from core.errors import WorkbenchError
from core.store import Store


def run(db_path: Path | None, *, mouse: bool = True) -> int:
    """Open the database and run the app until it is left; the exit code.

    A database that cannot be used is one line on stderr and its error's exit code, before the terminal is touched.
    """
    if os.environ.get("TERM", "dumb") in ("", "dumb") or not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("error: no terminal for the app; use the commands (lance-workbench --help)", file=sys.stderr)
        return 2
    try:
        store = Store.open(db_path)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # What is imported and built until the first paint lives as long as the app: collecting it is 20 ms for nothing.
    # The app turns the collector on again once it has painted.
    gc.disable()
    from workbench.first_frame import FirstFrame

    try:
        with FirstFrame(store) as frame:
            from workbench.application import WorkbenchApp

            app = WorkbenchApp(store, frame)
            app.run(mouse=mouse)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        store.close()
    return app.return_code or 0
