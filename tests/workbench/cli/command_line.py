"""The command line as tests call it, in their own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.cli.main import run_command


class CommandLine:
    """Runs commands on one database and keeps what they print."""

    def __init__(self, database: Path, capfd: Any) -> None:
        self.database = database
        self.capfd = capfd

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self.capfd.readouterr()
        found = run_command(["--db", str(self.database), *arguments])
        out, self.err = self.capfd.readouterr()
        assert found == code, self.err
        return str(out)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def refused(self, *arguments: str, code: int = 2) -> str:
        """What a command that is refused says; it queues nothing and makes no database."""
        there = self.database.exists()
        before = self.json("jobs", "list", "--all") if there else []
        assert self(*arguments, code=code) == ""
        said = str(self.err)
        assert said.startswith("error: ") and said.count("\n") == 1
        assert self.database.exists() == there
        assert (self.json("jobs", "list", "--all") if there else []) == before
        return said
