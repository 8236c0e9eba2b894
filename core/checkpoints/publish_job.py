"""The job ``publish``: a checkpoint, variant or exported folder goes to the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from core.checkpoints.publish import plan, publish
from core.errors import RetryLater
from core.jobs.context import JobContext
from core.store.columns import size


def run(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Publish ``checkpoint`` (a name or folder) as ``repo``; ``public`` and ``revision`` as the command has them.

    Stopped at any time, it leaves the repository as it was, or made and empty; run again, it sends what is missing.

    Raises:
        UsageError, CheckpointError, RetryLater, WorkbenchError: as ``core.checkpoints.publish``.
        Cancelled: asked to stop.
    """
    started = time.monotonic()
    planned = plan(
        str(spec["checkpoint"]),
        str(spec["repo"]),
        context.store,
        public=bool(spec.get("public")),
        revision=spec.get("revision"),
    )
    context.log(
        f"{planned.contents.name}: {len(planned.sizes)} files, {size(planned.size_bytes)}, to {planned.repo} "
        f"({'public' if planned.public else 'private'}), branch {planned.branch}"
    )
    for remark in planned.card.remarks:
        context.log(f"note: {remark}")

    def progress(done: int, total: int, unit: str, message: str) -> None:
        context.progress(done, total, unit, message)
        if unit == "files":
            # A file may take minutes: that it is being sent must be known by then.
            with contextlib.suppress(RetryLater):
                context.flush()

    done = publish(planned, context.log, progress)
    context.log(f"published: {done.url}")
    return {
        "commit": done.url,
        "repository": planned.repo,
        "visibility": "public" if planned.public else "private",
        "revision": planned.branch,
        "name": planned.contents.name,
        "files": len(planned.sizes),
        "size_bytes": planned.size_bytes,
        "sent": list(done.sent),
        "sent_bytes": sum(done.sent.values()),
        "unchanged": done.unchanged,
        "evaluations": list(planned.card.runs),
        "remarks": list(planned.card.remarks),
        "seconds": round(time.monotonic() - started, 3),
    }
