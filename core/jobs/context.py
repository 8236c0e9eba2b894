"""What a job's handler is given: the store, and a way to say how far it is."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from core.errors import Cancelled, RetryLater
from core.jobs import table
from core.store import Store
from core.store.clock import now

PROGRESS_PERIOD_S = 0.25
HEARTBEAT_PERIOD_S = 5.0


class JobContext:
    """The worker's side of one attempt of one job.

    Attributes:
        store: runs.db, open for writing.
        job_id: the job's id; runs that it makes carry it, and are closed when the job ends in any way.
        data_dir: the store's data folder.
        folder: the job's own folder in it.
    """

    def __init__(self, store: Store, job_id: int, attempt: int) -> None:
        self.store = store
        self.job_id = job_id
        self.data_dir: Path = store.data_dir
        self.folder: Path = table.folder(store, job_id)
        self._attempt = attempt
        self._cancel = threading.Event()
        self._stopped = threading.Event()
        self._last_write = 0.0
        self._unwritten: tuple[float, float | None, str, str] | None = None

    def progress(self, done: float, total: float | None, unit: str = "", message: str = "") -> None:
        """Say that ``done`` of ``total`` units are done. Cheap: the database hears of it four times a second
        at most.

        Call it often, at least once a batch: it is also where a request to cancel arrives.

        Raises:
            Cancelled: the job was asked to stop; let it pass, what is finished stays.
        """
        self.check()
        self._unwritten = (done, total, unit, message)
        if time.monotonic() - self._last_write >= PROGRESS_PERIOD_S:
            # Progress is news, not a result: if another process holds the lock, the next call tells it.
            with contextlib.suppress(RetryLater):
                self.flush()
            self.check()

    def check(self) -> None:
        """Raise ``Cancelled`` if the job was asked to stop."""
        if self._cancel.is_set():
            raise Cancelled(f"job {self.job_id}: cancelled")

    def log(self, text: str) -> None:
        """Write a line to the job's log."""
        print(text, flush=True)

    def flush(self) -> None:
        """Write the latest progress to the database, if it has not been written."""
        if self._unwritten is None:
            return
        self._last_write = time.monotonic()
        done, total, unit, message = self._unwritten
        rows = self.store.returning(
            "UPDATE jobs SET progress_done = ?, progress_total = ?, unit = ?, message = ?, progress_at = ? "
            "WHERE id = ? AND attempt = ? AND state IN ('running', 'cancelling') RETURNING cancel_requested_at",
            (done, total, unit, message, now(), self.job_id, self._attempt),
        )
        self._unwritten = None
        self._hear(rows)

    def request_cancel(self) -> None:
        """Make the next ``progress`` or ``check`` raise ``Cancelled``."""
        self._cancel.set()

    def start_heartbeat(self) -> None:
        """Tell the database every few seconds that this process lives, from a thread with a connection of its
        own."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the heartbeat."""
        self._stopped.set()

    def _beat(self) -> None:
        with Store.open(self.store.path, create=False) as store:
            while not self._stopped.wait(HEARTBEAT_PERIOD_S):
                # A beat that a lock or a full disk swallows is made up by the next.
                with contextlib.suppress(Exception):
                    self._hear(
                        store.returning(
                            "UPDATE jobs SET heartbeat_at = ? WHERE id = ? AND attempt = ? "
                            "AND state IN ('running', 'cancelling') RETURNING cancel_requested_at",
                            (now(), self.job_id, self._attempt),
                        )
                    )

    def _hear(self, rows: list[table.Row]) -> None:
        # No row: the job was taken from us, as lost or retried. Whatever we do now is nobody's.
        if not rows or rows[0]["cancel_requested_at"] is not None:
            self._cancel.set()
