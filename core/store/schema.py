"""The tables of runs.db, as migrations.

This is the only module that knows DDL. It imports sqlite_utils, which is why nothing on the read path imports
it: opening an up-to-date database compares ``PRAGMA user_version`` with ``database.SCHEMA_VERSION`` and never
comes here.

Times are UTC text, ``2026-11-21T14:02:11.123Z``, so that they sort as text and read well in any SQLite
client.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("lance-workbench")

_TABLES = (
    # kind: a checkpoint is given to us and never changed; a variant is made by a recipe, from its parent.
    """CREATE TABLE checkpoints (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        path TEXT NOT NULL,
        kind TEXT NOT NULL DEFAULT 'checkpoint' CHECK (kind IN ('checkpoint', 'variant')),
        family TEXT,
        parent TEXT,
        recipe TEXT,
        bits REAL,
        size_bytes INTEGER,
        fingerprint TEXT,
        created_at TEXT NOT NULL,
        details TEXT NOT NULL DEFAULT '{}'
    )""",
    """CREATE TABLE calibrations (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        checkpoint TEXT NOT NULL,
        path TEXT NOT NULL,
        fingerprint TEXT,
        tasks TEXT NOT NULL DEFAULT '[]',
        samples INTEGER,
        tokens INTEGER,
        created_at TEXT NOT NULL,
        details TEXT NOT NULL DEFAULT '{}'
    )""",
    # device is what was asked for (auto, cpu, cuda:0), slot what was granted (cpu, or a GPU's UUID).
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        spec TEXT NOT NULL,
        spec_hash TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'starting', 'running', 'cancelling',
            'succeeded', 'failed', 'cancelled', 'lost')),
        priority INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        device TEXT NOT NULL DEFAULT 'auto',
        slot TEXT,
        cwd TEXT,
        host TEXT,
        boot_id TEXT,
        pid INTEGER,
        pid_start_ticks INTEGER,
        pgid INTEGER,
        heartbeat_at TEXT,
        cancel_requested_at TEXT,
        kill_requested INTEGER NOT NULL DEFAULT 0,
        progress_done REAL,
        progress_total REAL,
        progress_at TEXT,
        unit TEXT,
        message TEXT,
        result TEXT,
        exit_code INTEGER,
        signal INTEGER,
        error_class TEXT,
        created_at TEXT NOT NULL,
        started_at TEXT,
        finished_at TEXT
    )""",
    """CREATE TABLE job_dependencies (
        job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
        needs INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
        PRIMARY KEY (job_id, needs)
    ) WITHOUT ROWID""",
    """CREATE TABLE job_events (
        id INTEGER PRIMARY KEY,
        job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
        at TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        from_state TEXT,
        to_state TEXT NOT NULL,
        message TEXT
    )""",
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL DEFAULT 'evaluate' CHECK (kind IN ('evaluate', 'calibrate', 'quantize', 'bench')),
        checkpoint TEXT NOT NULL,
        variant TEXT,
        recipe TEXT,
        bits REAL,
        size_bytes INTEGER,
        suite TEXT,
        task TEXT,
        samples INTEGER,
        state TEXT NOT NULL DEFAULT 'running'
            CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'lost')),
        baseline_run_id INTEGER REFERENCES runs(id) ON DELETE SET NULL,
        job_id INTEGER REFERENCES jobs(id) ON DELETE SET NULL,
        created_at TEXT NOT NULL,
        duration_s REAL,
        device TEXT,
        spec_hash TEXT,
        tags TEXT,
        note TEXT
    )""",
    # Beside runs and not in it: a manifest is some kilobytes, and the run table must be scanned in
    # milliseconds.
    """CREATE TABLE manifests (
        run_id INTEGER PRIMARY KEY REFERENCES runs(id) ON DELETE CASCADE,
        body TEXT NOT NULL
    )""",
    """CREATE TABLE scores (
        run_id INTEGER PRIMARY KEY REFERENCES runs(id) ON DELETE CASCADE,
        exact REAL, exact_low REAL, exact_high REAL,
        truth REAL, truth_low REAL, truth_high REAL,
        levenshtein REAL, ratio REAL, jaccard REAL,
        kl REAL, kl_se REAL, kl_p99 REAL, kl_max REAL,
        top1 REAL, top1_low REAL, top1_high REAL,
        nll REAL, nll_se REAL,
        psnr REAL, psnr_se REAL,
        mae REAL, mae_se REAL,
        cosine REAL, cosine_se REAL,
        velocity REAL, velocity_se REAL,
        pixel REAL, pixel_low REAL, pixel_high REAL,
        seconds REAL
    )""",
    """CREATE TABLE media (
        sha256 TEXT PRIMARY KEY,
        mime TEXT NOT NULL,
        width INTEGER,
        height INTEGER,
        bytes BLOB NOT NULL
    )""",
    """CREATE TABLE outputs (
        run_id INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
        idx INTEGER NOT NULL,
        sample_key TEXT NOT NULL,
        task TEXT,
        question TEXT,
        instruction TEXT,
        expected TEXT,
        input_media TEXT REFERENCES media(sha256),
        text TEXT,
        tokens TEXT,
        output_media TEXT REFERENCES media(sha256),
        seconds REAL,
        exact REAL, truth REAL, levenshtein REAL, ratio REAL, jaccard REAL,
        kl REAL, kl_max REAL, kl_argmax INTEGER, kl_tokens TEXT, top1 REAL, nll REAL,
        psnr REAL, mae REAL, cosine REAL, velocity REAL, pixel REAL,
        PRIMARY KEY (run_id, idx)
    )""",
)

_INDEXES = (
    "CREATE INDEX jobs_state ON jobs(state, priority DESC, id)",
    "CREATE INDEX job_dependencies_needs ON job_dependencies(needs)",
    "CREATE INDEX job_events_job ON job_events(job_id, id)",
    "CREATE INDEX runs_job ON runs(job_id)",
    "CREATE INDEX runs_lookup ON runs(checkpoint, suite, variant)",
    "CREATE INDEX outputs_sample ON outputs(sample_key)",
)

_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"

# Triggers, and not code, because a process may be killed between two statements but not inside one:
# every change of a job's state leaves an event, and no run stays open once its job is over.
_TRIGGERS = (
    f"""CREATE TRIGGER job_created AFTER INSERT ON jobs BEGIN
        INSERT INTO job_events (job_id, at, attempt, from_state, to_state, message)
        VALUES (new.id, {_NOW}, new.attempt, NULL, new.state, new.message);
    END""",
    f"""CREATE TRIGGER job_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
        INSERT INTO job_events (job_id, at, attempt, from_state, to_state, message)
        VALUES (new.id, {_NOW}, new.attempt, old.state, new.state, new.message);
    END""",
    """CREATE TRIGGER job_ended AFTER UPDATE OF state ON jobs
        WHEN new.state IN ('succeeded', 'failed', 'cancelled', 'lost') BEGIN
        UPDATE runs SET state = CASE new.state WHEN 'succeeded' THEN 'failed' ELSE new.state END
        WHERE job_id = new.id AND state = 'running';
    END""",
)

# name is what a person calls the row: the bf16 checkpoint's own rows end in _bf16, so that they stand beside
# its variants.
_VIEWS = (
    """CREATE VIEW run_table AS SELECT
        r.id, r.kind,
        CASE WHEN r.recipe = 'bf16' THEN coalesce(r.variant, r.checkpoint) || '_bf16'
             ELSE coalesce(r.variant, r.checkpoint) END AS name,
        r.checkpoint, r.variant, r.recipe, r.bits, r.size_bytes, r.suite, r.task, r.samples, r.state,
        r.baseline_run_id, r.job_id, r.created_at, r.duration_s, r.device, r.spec_hash, r.tags, r.note,
        s.exact, s.exact_low, s.exact_high, s.truth, s.truth_low, s.truth_high,
        s.levenshtein, s.ratio, s.jaccard,
        s.kl, s.kl_se, s.kl_p99, s.kl_max,
        s.top1, s.top1_low, s.top1_high, s.nll, s.nll_se,
        s.psnr, s.psnr_se, s.mae, s.mae_se, s.cosine, s.cosine_se, s.velocity, s.velocity_se,
        s.pixel, s.pixel_low, s.pixel_high, s.seconds
    FROM runs r LEFT JOIN scores s ON s.run_id = r.id""",
    """CREATE VIEW job_table AS SELECT j.*,
        (SELECT group_concat(d.needs) FROM job_dependencies d WHERE d.job_id = j.id) AS depends_on
    FROM jobs j""",
)


@MIGRATIONS()  # type: ignore[untyped-decorator]  # sqlite_utils carries no types
def initial(db: Database) -> None:
    """Version 1: checkpoints, calibrations, jobs, runs with their scores, manifests, outputs and media."""
    for statement in (*_TABLES, *_INDEXES, *_TRIGGERS, *_VIEWS):
        db.execute(statement)


def apply(connection: sqlite3.Connection) -> None:
    """Apply the migrations that ``connection``'s database lacks, inside the transaction that is open on
    it."""
    MIGRATIONS.apply(Database(connection, execute_plugins=False))
