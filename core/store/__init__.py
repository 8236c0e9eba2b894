"""runs.db: schema, migrations, queries, writes, manifests and export to markdown, csv and json.

``Store`` is the way in. Importing this package and reading through it needs the standard library only (no
sqlite_utils, numpy or torch): the app opens the database before its first paint. ``export``, ``columns`` and
``manifest`` are imported by their own names.
"""

from core.store.database import SCHEMA_VERSION, default_path
from core.store.writes import Store

__all__ = ["SCHEMA_VERSION", "Store", "default_path"]
