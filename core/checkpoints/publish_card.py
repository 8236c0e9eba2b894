"""The model card as it is published: the folder's README.md with what the database knows. The folder stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints.describe import OWN_FILE
from core.checkpoints.publish_contents import CARD_FILE, Contents
from core.errors import CheckpointError
from core.store.columns import chosen, interval_text, without_empty
from core.store.export import footnote, markdown_table, versions_of

if TYPE_CHECKING:
    from core.store import Store

BEGIN = "<!-- evaluations: written by lance-workbench -->"
END = "<!-- end of evaluations -->"

COLUMNS = (
    "id", "name", "suite", "samples", "bits", "size_bytes", "exact", "truth", "kl", "top1", "levenshtein", "nll",
    "psnr", "mae", "cosine", "velocity", "pixel", "baseline_run_id",
)  # fmt: skip
"""Of the run table; those without a figure are left out."""

ABOUT = (
    "Scores are against the bf16 run of the same suite: exact and top-1 are how often answers and tokens agree with "
    "it, KL is the divergence from it per answer token, in nats; truth is against the expected answers. Run numbers "
    "are those of the database that the runs were recorded in."
)

LOCAL = ("source_path", "imported_from")
"""Keys of a variant's record that hold paths of the machine it was made on."""


@dataclass(frozen=True)
class Card:
    """What is published in place of files of the folder, and what is to be said about it."""

    replaced: dict[str, bytes]
    """Content by file name."""
    runs: tuple[int, ...]
    """The evaluations that the card has a row of."""
    remarks: tuple[str, ...]
    """What whoever publishes should know, each in a line."""


def sent(found: Contents, made: Card) -> dict[str, Path | bytes]:
    """What is published, by its name in the repository: a file of the folder, or what stands in its place."""
    return found.files | made.replaced


def sizes(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """Bytes of what ``sent`` tells, by name, sorted."""
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in sorted(files.items())
    }


def card(found: Contents, store: Store) -> Card:
    """The card of what is published, with a table of its evaluations, and the record without this machine's paths.

    Only evaluations of these very files are taken, told by the fingerprint in their manifests.

    Raises:
        CheckpointError: README.md is no text, or its head no YAML.
    """
    replaced: dict[str, bytes] = {}
    remarks: list[str] = []
    path = found.files.get(CARD_FILE)
    try:
        before = "" if path is None else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: no UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    runs, others = _evaluations(found, store)
    text = _with_base(before, store)
    if runs:
        text = _with_section(text or f"# {found.name}\n", _section(runs))
    if text != before:
        replaced[CARD_FILE] = text.encode()
    remarks += _lacks(text)
    if found.kind == "variant" and not runs:
        remarks.append("no finished evaluation of it is recorded, so the card has no scores")
    if others:
        remarks.append(
            f"left out of the card: {others} evaluation{'s' * (others != 1)} of other files of that name"
        )
    if any(key in found.record for key in LOCAL):
        public = {key: value for key, value in found.record.items() if key not in LOCAL}
        replaced[OWN_FILE] = (json.dumps(public, indent=1, ensure_ascii=False) + "\n").encode()
        remarks.append(f"{OWN_FILE} is published without the paths of this machine")
    if found.beside:
        remarks.append(f"not published, as it lies beside the folder: {', '.join(found.beside)}")
    return Card(replaced, tuple(int(run["id"]) for run in runs), tuple(remarks))


def _evaluations(found: Contents, store: Store) -> tuple[list[dict[str, Any]], int]:
    """The newest finished evaluation of each kind, behind the bf16 run that it was compared with, and how many there
    are of other files of that name.
    """
    if found.kind != "variant":
        return [], 0
    ids = store.query(
        "SELECT id FROM runs WHERE kind = 'evaluate' AND state = 'succeeded' AND variant = ? ORDER BY id",
        (found.name,),
    )
    mine = [store.run(row["id"]) for row in ids]
    same = [run for run in mine if _fingerprint(run) == found.fingerprint]
    newest = {(run["suite"], run["task"], run["spec_hash"]): run for run in same}
    table: list[dict[str, Any]] = []
    for run in sorted(newest.values(), key=lambda run: (str(run["suite"]), run["id"])):
        baseline = run["baseline_run_id"]
        if baseline is not None and baseline not in {row["id"] for row in table}:
            table.append(store.run(baseline))
        table.append(run)
    return table, len(mine) - len(same)


def _fingerprint(run: Mapping[str, Any]) -> object:
    return ((run.get("manifest") or {}).get("fingerprints") or {}).get("variant")


def _section(runs: list[dict[str, Any]]) -> str:
    columns = without_empty(chosen(COLUMNS), runs)
    table = markdown_table(
        [column.title for column in columns],
        [[interval_text(column, run) for column in columns] for run in runs],
        [column.align == "right" for column in columns],
    )
    note = footnote(runs, versions_of(run.get("manifest") or {} for run in runs))
    return f"{BEGIN}\n## Evaluations\n\n{table}\n{ABOUT} {note}{END}\n"


def _with_section(text: str, section: str) -> str:
    """The card with the section in the place of an earlier one, or at its end."""
    earlier = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
    if earlier.search(text):
        return earlier.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}"


_BASE = re.compile(r"\A(---\n(?:(?!---\n).*\n)*?base_model: )([^\s/]+)$", re.MULTILINE)


def _with_base(text: str, store: Store) -> str:
    """The card with the repository that the base model was fetched from, or published to, in place of its name here."""
    found = _BASE.match(text)
    repo = _repository(found[2], store) if found else None
    return _BASE.sub(rf"\g<1>{repo}", text, count=1) if repo else text


def _repository(name: str, store: Store) -> str | None:
    row = store.checkpoint(name)
    fetched = row["details"].get("repo") if row is not None and isinstance(row["details"], dict) else None
    if isinstance(fetched, str):
        return fetched
    published = store.query(
        "SELECT json_extract(result, '$.repository') AS repo FROM jobs WHERE kind = 'publish' "
        "AND state = 'succeeded' AND json_extract(result, '$.name') = ? ORDER BY id DESC LIMIT 1",
        (name,),
    )
    return str(published[0]["repo"]) if published else None


def _lacks(text: str) -> list[str]:
    """What the head of the card does not say."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]  # huggingface_hub's, which names no types

    if not text:
        return [f"no {CARD_FILE}: nobody is told its licence and base model"]
    try:
        # Of a card without a head the library would warn on stderr.
        head = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except (YAMLError, ValueError) as error:
        raise CheckpointError(f"{CARD_FILE}: its head is no YAML ({' '.join(str(error).split())})") from error
    found = [f"the card names no {key}" for key in ("license", "base_model") if not head.get(key)]
    base = head.get("base_model")
    if isinstance(base, str) and "/" not in base:
        found.append(f"base_model {base} is no repository of the Hub (owner/name), so it links to nothing")
    return found
