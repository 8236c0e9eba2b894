"""The card that is published: the folder's own, with a table of the evaluations of these very files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpoints.describe import OWN_FILE, describe
from core.checkpoints.publish_card import BEGIN, Card, card
from core.checkpoints.publish_contents import contents
from core.demo import CHECKPOINT
from core.errors import CheckpointError
from core.store import Store

NAME = "small_int4"
HEAD = "---\nlicense: apache-2.0\nbase_model: lance-demo\ntags: [lance]\n---\n\n# small_int4\n\nWords.\n"
MANIFEST = {"versions": {"torch": "2.11.0", "lance-workbench": "0.1.0"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "runs.db") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a variant has, as far as its card goes."""
    place = shutil.copytree(CHECKPOINT, tmp_path / "mine")
    config = json.loads((place / "llm_config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    (place / OWN_FILE).write_text(json.dumps({"name": NAME, "source": {"name": "lance-demo"}}))
    (place / "README.md").write_text(HEAD)
    return place


def add_run(store: Store, variant: str | None, of: str | None, **fields: Any) -> int:
    """A finished evaluation of the files with that fingerprint."""
    scores = fields.pop("scores", {})
    run_id = store.start_run(
        kind="evaluate", checkpoint="lance-demo", variant=variant, recipe="bf16" if variant is None else "int4",
        suite=fields.pop("suite", "demo-x2t"), task="x2t_image", samples=200, device="cpu", bits=4.4,
        size_bytes=8_100_000, manifest={**MANIFEST, "fingerprints": {"checkpoint": "c", "variant": of}}, **fields,
    )  # fmt: skip
    store.set_scores(run_id, **scores)
    store.finish_run(run_id)
    return run_id


def made(store: Store, folder: Path) -> tuple[Card, str]:
    found = card(contents(str(folder), store), store)
    return found, found.replaced.get("README.md", b"").decode()


def test_the_table_has_scores_with_their_uncertainty_and_run_numbers(store: Store, folder: Path) -> None:
    of = describe(folder).fingerprint
    base = add_run(store, None, None, scores={"truth": 0.9, "truth_low": 0.85, "truth_high": 0.93})
    scores = {"exact": 0.88, "exact_low": 0.828, "exact_high": 0.918, "kl": 0.031, "kl_se": 0.0021, "top1": 0.968,
              "top1_low": 0.96, "top1_high": 0.975, "truth": 0.895, "truth_low": 0.84, "truth_high": 0.93}  # fmt: skip
    mine = add_run(store, NAME, of, baseline_run_id=base, scores=scores)
    found, text = made(store, folder)
    assert found.runs == (base, mine)
    assert text.startswith(HEAD) and text.count("## Evaluations") == 1
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert table[0]["run"] == str(base) and table[0]["variant"] == "lance-demo_bf16"
    assert table[0]["truth"] == "90.0 % (85.0 to 93.0)" and table[0]["KL"] == "—"
    assert table[1]["run"] == str(mine) and table[1]["against"] == str(base) and table[1]["size"] == "8.1 MB"
    assert table[1]["exact"] == "88.0 % (82.8 to 91.8)" and table[1]["KL"] == "0.0310 ± 0.0021"
    assert table[1]["top-1"] == "96.8 % (96.0 to 97.5)" and "PSNR" not in table[1]
    assert "95 % Wilson interval" in text and "torch 2.11.0" in text and "Exported" not in text
    assert (folder / "README.md").read_text() == HEAD


def test_only_finished_evaluations_of_these_files_and_the_newest_of_each(store: Store, folder: Path) -> None:
    of = describe(folder).fingerprint
    add_run(store, NAME, "another build", scores={"kl": 9.0})
    add_run(store, "other", of, scores={"kl": 8.0})
    add_run(store, NAME, of, spec_hash="a", scores={"kl": 0.5})
    newer = add_run(store, NAME, of, spec_hash="a", scores={"kl": 0.25})
    second = add_run(store, NAME, of, spec_hash="b", suite="text:prose", scores={"nll": 1.5})
    running = store.start_run(kind="evaluate", checkpoint="lance-demo", variant=NAME,
                              manifest={"fingerprints": {"variant": of}})  # fmt: skip
    found, text = made(store, folder)
    assert found.runs == (newer, second) and running not in found.runs
    assert "0.2500" in text and "1.5000" in text and "0.5000" not in text and "9.0" not in text
    assert "left out of the card: 1 evaluation of other files of that name" in found.remarks


def test_a_table_of_an_earlier_publication_is_replaced(store: Store, folder: Path) -> None:
    of = describe(folder).fingerprint
    add_run(store, NAME, of, scores={"kl": 0.5})
    first = made(store, folder)[1]
    (folder / "README.md").write_text(first + "\n## More\n")
    assert made(store, folder)[1] == ""  # nothing new: the folder's own is published
    add_run(store, NAME, of, suite="second", scores={"kl": 0.25})
    text = made(store, folder)[1]
    assert text.count(BEGIN) == 1 and "0.2500" in text and text.endswith("\n## More\n")


def test_without_evaluations_the_card_stays_and_that_is_said(store: Store, folder: Path) -> None:
    found, text = made(store, folder)
    assert text == "" and found.runs == ()
    assert "no finished evaluation of it is recorded, so the card has no scores" in found.remarks


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        (HEAD, ["base_model lance-demo is no repository of the Hub (owner/name), so it links to nothing"]),
        ("# Mine\n", ["the card names no license", "the card names no base_model"]),
        ("---\nlicense: mit\n---\n", ["the card names no base_model"]),
        ("---\nbase_model: a/b\n---\n", ["the card names no license"]),
        (None, ["no README.md: nobody is told its licence and base model"]),
    ],
)
def test_what_a_card_lacks_is_said_and_not_refused(
    store: Store, folder: Path, readme: str | None, said: list[str]
) -> None:
    (folder / "README.md").unlink()
    if readme is not None:
        (folder / "README.md").write_text(readme)
    assert list(made(store, folder)[0].remarks)[: len(said)] == said


def test_a_folder_without_a_card_gets_one_for_its_table(store: Store, folder: Path) -> None:
    (folder / "README.md").unlink()
    add_run(store, NAME, describe(folder).fingerprint, scores={"kl": 0.5})
    assert made(store, folder)[1].startswith(f"# {NAME}\n\n{BEGIN}\n## Evaluations\n")


def test_the_base_model_is_named_by_its_repository(store: Store, folder: Path) -> None:
    details = {"repo": "bytedance-research/Lance", "revision": "4" * 40}
    store.register_checkpoint(name="lance-demo", path=str(CHECKPOINT), kind="checkpoint", details=details)
    found, text = made(store, folder)
    assert text == HEAD.replace("base_model: lance-demo", "base_model: bytedance-research/Lance")
    assert not any("base_model" in remark for remark in found.remarks)


def test_the_base_of_an_export_is_where_the_variant_was_published(store: Store, folder: Path) -> None:
    for number, (repo, state) in enumerate(
        (("me/old", "succeeded"), ("me/new", "succeeded"), ("me/x", "failed"))
    ):
        result = json.dumps({"name": "lance-demo", "repository": repo})
        store.execute(
            "INSERT INTO jobs (kind, spec, spec_hash, state, result, created_at) VALUES ('publish', '{}', ?, ?, ?, "
            "'2026-01-01T00:00:00.000Z')",
            (str(number), state, result),
        )
    assert made(store, folder)[1] == HEAD.replace("base_model: lance-demo", "base_model: me/new")
    (folder / "README.md").write_text(HEAD.replace("lance-demo", "unknown") + "base_model: lance-demo\n")
    assert made(store, folder)[1] == ""  # only the head is read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"---\nlicense: [mit\n---\n", "README.md: its head is no YAML"),
        (b"---\n- a\n---\n", "its head is no YAML"),
        (b"caf\xe9", "README.md: no UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(store: Store, folder: Path, content: bytes, said: str) -> None:
    (folder / "README.md").write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as error:
        made(store, folder)
    assert "\n" not in str(error.value)
