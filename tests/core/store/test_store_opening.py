"""Opening runs.db: what is refused, with which words, and what opening leaves behind."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import RetryLater, StoreError, UsageError
from core.store import SCHEMA_VERSION, Store, database, default_path, schema


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def _with_runs(path: Path, count: int = 3) -> Store:
    store = Store.open(path)
    for _ in range(count):
        store.start_run(checkpoint="lance-demo", note="x" * 5000)
    return store


def test_a_new_database_has_the_schema_and_is_sound(path: Path) -> None:
    with Store.open(path) as store:
        assert store.value("PRAGMA user_version") == SCHEMA_VERSION == len(schema.MIGRATIONS._migrations)
        assert store.integrity_errors() == []
        assert store.runs() == []
    assert store.data_dir == path.with_name("runs.data")


def test_a_newer_schema_is_refused_naming_both_versions(path: Path) -> None:
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreError, match=rf"schema version 999 found.*supports up to {SCHEMA_VERSION}"):
        Store.open(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, I am a text file\n" * 20, "not a SQLite database"),
        (b"SQLite format 3\x00" + b"\x00" * 20, "truncated"),
    ],
)
def test_a_file_that_is_no_database_is_refused_in_one_line(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=words) as caught:
        Store.open(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_truncated_database_is_refused(path: Path) -> None:
    store = _with_runs(path)
    store.seal()
    store.close()
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, 150):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match="truncated"):
            Store.open(path)


def test_damage_met_later_is_one_line_too(path: Path) -> None:
    store = _with_runs(path, 50)
    store.seal()
    store.close()
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.runs()


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)


def test_a_missing_database_is_made_only_where_that_is_wanted(path: Path) -> None:
    with pytest.raises(StoreError, match="no such database"):
        Store.open(path, create=False)
    with pytest.raises(StoreError, match="no such database"):
        Store.open(path, readonly=True)
    assert not path.exists()


def test_an_older_schema_is_backed_up_and_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_runs(path).close()
    later = schema.Migrations("lance-workbench")
    later._migrations = list(schema.MIGRATIONS._migrations)

    @later()
    def add_stars(db: schema.Database) -> None:
        db.execute("ALTER TABLE runs ADD COLUMN stars INTEGER")

    monkeypatch.setattr(schema, "MIGRATIONS", later)
    monkeypatch.setattr(database, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with pytest.raises(StoreError, match="wanted"):
        Store.open(path, readonly=True)
    with Store.open(path) as store:
        assert store.value("PRAGMA user_version") == SCHEMA_VERSION + 1
        store.update_run(1, stars=5)
        assert store.count_runs() == 3
    with sqlite3.connect(path.with_name(f"runs.db.v{SCHEMA_VERSION}-backup")) as backup:
        assert backup.execute("SELECT count(*) FROM runs").fetchone() == (3,)
        assert backup.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_failing_migration_leaves_the_old_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_runs(path).close()
    later = schema.Migrations("lance-workbench")
    later._migrations = list(schema.MIGRATIONS._migrations)

    @later()
    def half(db: schema.Database) -> None:
        db.execute("ALTER TABLE runs ADD COLUMN stars INTEGER")
        db.execute("CREATE TABLE runs (id INTEGER)")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", later)
        patch.setattr(database, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        with pytest.raises(StoreError):
            Store.open(path)
    with Store.open(path) as store:
        assert "stars" not in store.runs()[0]
        assert store.integrity_errors() == []


def test_many_processes_may_make_the_same_database_at_once(path: Path) -> None:
    code = "import sys; from core.store import Store; Store.open(sys.argv[1]).start_run(checkpoint='x')"
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [(p.communicate()[1], p.returncode) for p in processes] == [(b"", 0)] * 4
    with Store.open(path) as store:
        assert store.count_runs() == 4


def test_looking_at_a_sealed_database_changes_nothing(path: Path) -> None:
    store = _with_runs(path)
    store.seal()
    store.close()
    content = path.read_bytes()
    for readonly in (False, True):
        with Store.open(path, readonly=readonly) as store:
            assert store.count_runs() == 3
            assert [file.name for file in path.parent.iterdir()] == ["runs.db"]
    assert path.read_bytes() == content
    with Store.open(path) as store:
        assert store.start_run(checkpoint="x") == 4
        assert store.value("PRAGMA journal_mode") == "wal"


def test_sealing_leaves_one_file_that_can_be_copied(path: Path, tmp_path: Path) -> None:
    store = _with_runs(path)
    store.seal()
    store.start_run(checkpoint="after sealing")
    store.seal()
    copy = tmp_path / "elsewhere" / "copy.db"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    store.close()
    with Store.open(copy, readonly=True) as store:
        assert store.count_runs() == 4


def test_sealing_waits_for_no_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    with _with_runs(path) as store, Store.open(path) as other:
        other.count_runs()
        with pytest.raises(RetryLater):
            store.seal()
        assert store.count_runs() == 3


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who may not write")
@pytest.mark.parametrize("sealed", [True, False])
def test_a_database_that_may_not_be_written_can_be_read(sealed: bool) -> None:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        store = _with_runs(folder / "runs.db")
        if sealed:
            store.seal()
        store.close()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setuid(65534)
                for readonly in (True, False):
                    with Store.open(folder / "runs.db", create=False, readonly=readonly) as reader:
                        assert reader.count_runs() == 3
                        with pytest.raises(StoreError, match="permissions"):
                            reader.update_run(1, note="no")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        shutil.rmtree(folder)


def test_a_lock_held_for_too_long_says_retry_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with _with_runs(path) as store, Store.open(path) as other, store.write():
        with pytest.raises(RetryLater, match="locked"):
            other.start_run(checkpoint="x")
        assert other.count_runs() == 3


def test_on_a_network_filesystem_there_is_no_wal_and_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "network_filesystem", lambda folder: "NFS")
    with _with_runs(path) as store:
        assert store.value("PRAGMA journal_mode") == "delete"
        assert store.warning is not None and "NFS" in store.warning


def test_the_default_place_follows_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("LANCE_WORKBENCH_DB", raising=False)
    assert default_path() == tmp_path / "state" / "lance-workbench" / "runs.db"
    (tmp_path / "runs.db").touch()
    assert default_path() == tmp_path / "runs.db"
    monkeypatch.setenv("LANCE_WORKBENCH_DB", str(tmp_path / "other.db"))
    assert default_path() == tmp_path / "other.db"


def test_data_version_tells_every_change(path: Path) -> None:
    with _with_runs(path) as store, Store.open(path) as other:
        seen = store.data_version()
        assert store.data_version() == seen
        other.update_run(1, note="other")
        assert store.data_version() != seen
        seen = store.data_version()
        store.update_run(1, note="own")
        assert store.data_version() != seen


def test_an_unknown_column_is_named(path: Path) -> None:
    with Store.open(path) as store, pytest.raises(UsageError, match="'colour'"):
        store.start_run(checkpoint="x", colour="red")
