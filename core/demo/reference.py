"""The database the repository ships: ``python -m core.demo.reference SOURCE.db TARGET.db``.

A copy of a real run of the demo with its runs, outputs, scores, pictures and manifests. What only means something on
the machine that made it is left out: jobs, folders of variants and calibrations, host name, process arguments.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from pathlib import Path

from core.errors import StoreError
from core.files import replacing
from core.store import Store

PRIVATE = ("host", "job", "command_line")
"""What a manifest says of the machine rather than of the run."""

COMMAND = ["lance-workbench", "demo"]


def publish(source: Path, target: Path) -> int:
    """Write the shippable copy of database ``source`` to ``target``; the number of its runs.

    Raises:
        StoreError: ``source`` is missing or damaged, or jobs of it still run.
    """
    with Store.open(source, create=False, readonly=True) as store:
        if store.value(
            "SELECT count(*) FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'lost')"
        ):
            raise StoreError(f"{source}: jobs still run or wait; wait for them")
    with replacing(target) as partial:
        with sqlite3.connect(source) as connection:
            connection.execute("VACUUM INTO ?", (str(partial),))
        with Store.open(partial, create=False) as copy:
            with copy.write() as connection:
                for table in ("job_dependencies", "job_events", "jobs", "calibrations", "checkpoints"):
                    connection.execute(f"DELETE FROM {table}")
                for run_id, body in connection.execute("SELECT run_id, body FROM manifests").fetchall():
                    kept = {key: value for key, value in json.loads(body).items() if key not in PRIVATE}
                    text = json.dumps(kept | {"command_line": COMMAND}, sort_keys=True)
                    connection.execute("UPDATE manifests SET body = ? WHERE run_id = ?", (text, run_id))
            count = copy.count_runs()
            copy.seal()
        with sqlite3.connect(partial) as connection:
            # Deleted rows stay legible in free pages until the file is rewritten.
            connection.execute("VACUUM")
    return count


def main() -> None:
    """Copy one database for publication."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    print(f"{args.target}: {publish(args.source, args.target)} runs")


if __name__ == "__main__":
    main()
