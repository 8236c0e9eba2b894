"""Opening runs.db: checks before anything is touched, transactions, journal mode, sealing.

Only the standard library, because the app opens the database before its first paint. Merely opening an
up-to-date database never writes to it: the switch to WAL happens with the first write, so looking at a
committed runs.db leaves its bytes as they are.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.errors import RetryLater, StoreError, UsageError, WorkbenchError
from core.store.filesystems import network_filesystem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    Parameters = Sequence[Any] | Mapping[str, Any]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x4C414E43  # "LANC": tells our databases from another program's
BUSY_TIMEOUT_S = 10.0


def _expanded(path: Path | str) -> str:
    # As ``core.files.expanded``, which takes longer to import.
    return os.path.expanduser(path)  # noqa: PTH111


def default_path() -> Path:
    """Where the database is when nothing says otherwise.

    ``$LANCE_WORKBENCH_DB``, else ``runs.db`` in the current directory if it is there, else one in the user's
    state folder.
    """
    if given := os.environ.get("LANCE_WORKBENCH_DB"):
        return Path(_expanded(given))
    here = Path("runs.db")
    if here.is_file():
        return here.resolve()
    from platformdirs import user_state_path  # 15 ms that the usual case does not pay

    return user_state_path("lance-workbench", appauthor=False) / "runs.db"


_ERRORS = (sqlite3.Error, OverflowError)
"""What SQLite raises, and what Python does where a number is too large to be handed to it."""


def _plain(error: sqlite3.Error | OverflowError, path: Path) -> WorkbenchError:
    """``error``, met while using the database at ``path``, as one of our one-line errors."""
    text = str(error)
    if isinstance(error, OverflowError):
        return UsageError(f"{path}: holds no number as large as the one given; wanted at most {2**63 - 1}")
    low = text.lower()
    if "locked" in low or "busy" in low:
        return RetryLater(f"{path}: another process has locked the database; try again in a moment")
    if "full" in low:
        return StoreError(f"{path}: no space left on the device ({text}); free some space and run it again")
    if "not a database" in low:
        return StoreError(f"{path}: not a SQLite database; choose another file with --db")
    if "malformed" in low or "disk i/o" in low:
        return StoreError(
            f"{path}: the database is damaged ({text}); restore a copy, or move it away to start a new one"
        )
    if "readonly" in low:
        return StoreError(
            f"{path}: the database cannot be written ({text}); check the permissions of it and its folder"
        )
    return StoreError(f"{path}: {text}")


class Database:
    """A connection to runs.db, safe to share between threads, with the checks of opening it behind it.

    Attributes:
        path: the database file.
        readonly: whether writes are refused.
        warning: one line worth telling the user about where the database lies, or None.
    """

    def __init__(self, path: Path, *, create: bool, readonly: bool, in_memory: bool = False) -> None:
        self.path = path
        self.warning: str | None = None
        self._lock = threading.RLock()
        self._journal_ready = in_memory
        if not path.exists() and (readonly or not create):
            raise StoreError(
                f"{path}: no such database; `lance-workbench demo` makes one, or choose another with --db"
            )
        _check_file(path)
        self._conn, self.readonly = (_memory(), False) if in_memory else _connect(path, readonly)
        try:
            self._check_schema()
        except BaseException:
            self._conn.close()
            raise

    @classmethod
    def open(cls, path: Path | str | None = None, *, create: bool = True, readonly: bool = False) -> Self:
        """Open the database at ``path`` (``default_path()`` if None), bringing its schema up to date.

        An older schema is backed up to ``<path>.v<version>-backup`` before it is migrated.

        Raises:
            StoreError: not a database, damaged, of a newer schema or of another program, missing, or not
            writable. RetryLater: another process holds the lock for longer than the busy timeout.
        """
        return cls(_place(path), create=create, readonly=readonly)

    @classmethod
    def look(cls, path: Path | str | None = None) -> Self:
        """Open the database at ``path`` as ``open`` does; where there is none yet, an empty one in memory stands in.

        For what is checked before anything is done: a request that is refused leaves no file behind. What is written
        into one in memory is lost.

        Raises:
            StoreError, RetryLater: as ``open``.
        """
        place = _place(path)
        return cls(place, create=True, readonly=False, in_memory=not place.exists())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the store cannot be used after it."""
        with self._lock:
            self._conn.close()

    @property
    def data_dir(self) -> Path:
        """The folder beside the database that holds what is too large for it: ``<name without
        suffix>.data``."""
        return self.path.with_suffix(".data")

    # -- reading ------------------------------------------------------------------------------------

    def query(self, sql: str, parameters: Parameters = ()) -> list[dict[str, Any]]:
        """All rows of one SELECT, as dicts by column name."""
        with self._lock:
            try:
                cursor = self._conn.execute(sql, parameters)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor]
            except _ERRORS as error:
                raise _plain(error, self.path) from error

    def value(self, sql: str, parameters: Parameters = ()) -> Any:
        """The first column of the first row of one SELECT, or None."""
        with self._lock:
            try:
                row = self._conn.execute(sql, parameters).fetchone()
            except _ERRORS as error:
                raise _plain(error, self.path) from error
        return None if row is None else row[0]

    def data_version(self) -> tuple[int, int]:
        """A value that changes whenever the database does, by this connection or another; some microseconds
        to ask."""
        return int(self.value("PRAGMA data_version")), self._conn.total_changes

    def integrity_errors(self) -> list[str]:
        """What SQLite's integrity and foreign key checks complain about; empty for a sound database."""
        found = [row["integrity_check"] for row in self.query("PRAGMA integrity_check")]
        broken = self.query("PRAGMA foreign_key_check")
        return [text for text in found if text != "ok"] + [
            f"{row['table']} row {row['rowid']} refers to a missing row of {row['parent']}" for row in broken
        ]

    # -- writing ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One write transaction (BEGIN IMMEDIATE); nests by joining the one that is open.

        ``durable`` syncs the commit to the disk before returning, for finished results; other commits survive
        a crash of any process, but the last of them may be lost to a power cut.
        """
        with self._lock:
            if self._conn.in_transaction:
                yield self._conn
                return
            try:
                self._prepare_to_write()
                self._conn.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._conn.execute("BEGIN IMMEDIATE")
                try:
                    yield self._conn
                    self._conn.execute("COMMIT")
                except BaseException:
                    if self._conn.in_transaction:
                        self._conn.execute("ROLLBACK")
                    raise
            except _ERRORS as error:
                raise _plain(error, self.path) from error

    def execute(self, sql: str, parameters: Parameters = (), *, durable: bool = False) -> int:
        """Run one writing statement in a transaction; the number of rows it changed."""
        with self.write(durable=durable) as connection:
            return connection.execute(sql, parameters).rowcount

    def returning(
        self, sql: str, parameters: Parameters = (), *, durable: bool = False
    ) -> list[dict[str, Any]]:
        """Run one writing statement that ends in RETURNING; the rows it returns."""
        with self.write(durable=durable) as connection:
            cursor = connection.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def seal(self) -> None:
        """Leave one self-contained file: no -wal or -shm beside it, no free pages, everything in it.

        For a database that is to be committed or copied. Opening it again works, and it stays sealed until the
        first write. Waits some seconds for other processes to close it, such as a supervisor about to leave.

        Raises:
            RetryLater: another process keeps it open.
        """
        with self._lock:
            try:
                self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._set_journal_mode("delete")
                self._conn.execute("VACUUM")
                self._journal_ready = False
            except sqlite3.Error as error:
                raise _plain(error, self.path) from error

    def flush_log(self) -> None:
        """Move the write-ahead log into the database file and empty it; does nothing while readers are in the
        way."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- opening ------------------------------------------------------------------------------------

    def _check_schema(self) -> None:
        version = int(self.value("PRAGMA user_version"))
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: schema version {version} found, but this lance-workbench supports up to "
                f"{SCHEMA_VERSION}; update lance-workbench, or choose another database with --db"
            )
        tables = int(self.value("SELECT count(*) FROM sqlite_master"))
        if tables and int(self.value("PRAGMA application_id")) != APPLICATION_ID:
            raise StoreError(
                f"{self.path}: a SQLite database of another program; choose another file with --db"
            )
        if version == SCHEMA_VERSION:
            return
        if self.readonly:
            raise StoreError(
                f"{self.path}: schema version {version} found, {SCHEMA_VERSION} wanted; "
                "open it once with permission to write, which brings it up to date"
            )
        self._migrate(version)

    def _migrate(self, found: int) -> None:
        from core.store import schema  # sqlite_utils, 0.15 s: only when there is something to migrate

        if found:
            backup = self.path.with_name(f"{self.path.name}.v{found}-backup")
            if not backup.exists():
                try:
                    self._conn.execute("VACUUM INTO ?", (str(backup),))
                except sqlite3.Error as error:
                    raise _plain(error, backup) from error
        with self.write(durable=True) as connection:
            # Another process may have migrated between our look and our lock.
            if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
                schema.apply(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _prepare_to_write(self) -> None:
        """Set the journal mode, once per connection: WAL, or DELETE on a network filesystem."""
        if self._journal_ready:
            return
        if self.readonly:
            raise StoreError(
                f"{self.path}: opened for reading only; check the permissions of it and its folder"
            )
        network = network_filesystem(self.path.parent)
        if network:
            self.warning = (
                f"{self.path} lies on {network}, where SQLite is slow and locking is unreliable; "
                "better keep it on a local disk (--db, LANCE_WORKBENCH_DB)"
            )
        self._set_journal_mode("delete" if network else "wal")
        self._journal_ready = True

    def _set_journal_mode(self, wanted: str) -> None:
        # Changing the mode needs the file alone for an instant, and SQLite does not wait for that by itself.
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                if self._conn.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0] == wanted:
                    return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            if time.monotonic() > deadline:
                raise RetryLater(
                    f"{self.path}: another process keeps the database open; try again in a moment"
                )
            time.sleep(0.02)


def _place(path: Path | str | None) -> Path:
    """The absolute path of the database that is meant, links kept."""
    return Path(os.path.abspath(default_path() if path is None else _expanded(path)))  # noqa: PTH100


def _check_file(path: Path) -> None:
    """Refuse a file whose header already says that it is no whole database.

    Raises:
        StoreError: a folder, another kind of file, or a truncated database.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise StoreError(f"{path}: a folder, not a database file; choose a file with --db")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header = stream.read(100)
        log = path.with_name(path.name + "-wal")
        log_size = log.stat().st_size if log.exists() else 0
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        return
    if not header.startswith(b"SQLite format 3\x00"):
        raise StoreError(f"{path}: not a SQLite database; choose another file with --db")
    if len(header) < 100:
        raise StoreError(
            f"{path}: truncated, only {size} bytes of it are left; "
            "restore a copy, or move it away to start a new one"
        )
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    expected = pages * (65536 if page == 1 else page)
    counts_valid = header[24:28] == header[92:96]
    # With a log beside it the missing pages may be there.
    if counts_valid and size < expected and not log_size:
        raise StoreError(
            f"{path}: truncated, {size} bytes found, {expected} wanted; "
            "restore a copy, or move it away to start a new one"
        )


def _memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _connect(path: Path, readonly: bool) -> tuple[sqlite3.Connection, bool]:
    """The connection, and whether it can only read."""
    if not readonly:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{path.parent}: cannot be made ({error.strerror}); choose another place with --db"
            ) from error
    address = "file:" + str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    log = path.with_name(path.name + "-wal")
    modes = ["ro" if readonly else "rwc"]
    # A WAL database in a folder we may not write to: nobody writes it now, so read it as it stands.
    # Not with a log beside it, whose content would not be seen.
    if path.exists() and not (log.exists() and log.stat().st_size):
        modes.append("ro&immutable=1")
    while True:
        mode = modes.pop(0)
        connection = None
        try:
            connection = sqlite3.connect(
                f"{address}?mode={mode}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("SELECT count(*) FROM sqlite_master")
            return connection, mode != "rwc"
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            if not modes or not any(words in str(error) for words in ("unable to open", "readonly")):
                raise _plain(error, path) from error
