"""``python -m core.jobs supervise|worker|stand-by``: the processes behind jobs. People use ``lance-workbench
jobs``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.errors import WorkbenchError
from core.jobs import supervisor, worker
from core.store import Store


def main() -> int:
    """Parse the command line and become a supervisor or a worker; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.jobs", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    supervise = verbs.add_parser("supervise", help="start queued jobs until there are none")
    supervise.add_argument("--db", type=Path, required=True)
    supervise.add_argument(
        "--idle", type=float, default=supervisor.IDLE_S, help="seconds to stay without work"
    )
    supervise.add_argument(
        "--term-after", type=float, default=supervisor.TERM_AFTER_S, help="seconds from cancel to SIGTERM"
    )
    supervise.add_argument(
        "--kill-after", type=float, default=supervisor.KILL_AFTER_S, help="seconds from SIGTERM to SIGKILL"
    )
    work = verbs.add_parser("worker", help="run one claimed job")
    work.add_argument("--db", type=Path, required=True)
    work.add_argument("--job", type=int, required=True)
    work.add_argument("--attempt", type=int, required=True)
    ready = verbs.add_parser("stand-by", help="get ready to run the job that a line on stdin will name")
    ready.add_argument("--db", type=Path, required=True)
    ready.add_argument("--kind", required=True, help="kind of job to get ready for")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "worker":
            return worker.run(arguments.db, arguments.job, arguments.attempt)
        if arguments.verb == "stand-by":
            return worker.stand_by(arguments.db, arguments.kind)
        with Store.open(arguments.db, create=False) as store:
            supervisor.Supervisor(
                store,
                idle_s=arguments.idle,
                term_after_s=arguments.term_after,
                kill_after_s=arguments.kill_after,
            ).run()
        return 0
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
