"""Writing comparison reports to disk, with their pictures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from core.evaluation import report
from core.evaluation.comparison import Comparison
from core.files import write_bytes, write_text
from core.store import Store


def write_markdown(store: Store, comparisons: Sequence[Comparison], out: Path) -> list[Path]:
    """Write the reports as one markdown file, and the pictures they show into ``<stem>.media/`` beside it.

    The document is written last, so one that is there has all its pictures. Returns every file written, the
    document first.

    Raises:
        WorkbenchError: the disk is full, or the place cannot be written.
    """
    folder = out.with_suffix(".media")
    shown = [
        key
        for comparison in comparisons
        for pair in comparison.pairs
        for key in (pair.first["input_media"], pair.first["output_media"], pair.second["output_media"])
        if key is not None
    ]
    links, written = {}, []
    for key in dict.fromkeys(shown):
        file = folder / f"{key[:16]}.png"
        write_bytes(file, store.media(key))
        links[key] = quote(f"{folder.name}/{file.name}")
        written.append(file)
    write_text(out, "\n".join(report.markdown(comparison, links) for comparison in comparisons))
    return [out, *written]
