"""Publishing: exactly the layout's files, verified first, private unless asked otherwise, and again only what changed.

The Hub is a server of this process, and huggingface_hub itself talks to it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, HubServer
from safetensors.torch import load_file, save_file

from core.checkpoints import publish as publishing
from core.checkpoints.describe import OWN_FILE
from core.errors import Cancelled, CheckpointError, UsageError, WorkbenchError
from core.files import sha256_file
from core.store import Store

REPO = "me/small"
LAYOUT = {
    "README.md", "config.json", "lance_workbench.json", "llm_config.json", "merges.txt", "model.safetensors.index.json",
    "model-00001-of-00001.safetensors", "recipe.toml", "tokenizer_config.json", "vocab.json",
}  # fmt: skip
SHARD = "model-00001-of-00001.safetensors"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_published_is_the_layout_and_private(hub: HubServer, variant: Path, publisher: Any) -> None:
    before = files_of(variant)
    done = publisher.publish(variant)
    there = hub.repositories[REPO]
    assert there.private and hub.names(REPO) == LAYOUT == set(before)
    head = there.head()
    assert done["commit"].endswith(f"/{REPO}/commit/{head.oid}") and head.message == f"Publish {done['name']}"
    for name in LAYOUT - {OWN_FILE}:
        assert head.files[name] == before[name], name
    assert files_of(variant) == before
    assert done["visibility"] == "private" and set(done["sent"]) == LAYOUT and done["unchanged"] == 0
    assert any("verifying" in message for message in publisher.messages)
    assert any(message.startswith(f"sending {SHARD}, ") for message in publisher.flushed)
    assert f"published: {done['commit']}" in publisher.lines


def test_the_record_goes_without_paths_of_this_machine(hub: HubServer, variant: Path, publisher: Any) -> None:
    publisher.publish(variant)
    own = json.loads((variant / OWN_FILE).read_text())
    published = json.loads(hub.repositories[REPO].head().files[OWN_FILE])
    assert own.pop("source_path") and published == own
    assert not any(
        str(variant.parent).encode() in content for content in hub.repositories[REPO].head().files.values()
    )


def test_a_second_publication_sends_only_what_changed(hub: HubServer, variant: Path, publisher: Any) -> None:
    first = publisher.publish(variant)
    assert hub.received == [sha256_file(variant / SHARD)]
    again = publisher.publish(variant)
    assert again["commit"] == first["commit"] and again["sent"] == [] and again["unchanged"] == len(LAYOUT)
    (variant / "README.md").write_text((variant / "README.md").read_text() + "\nMore words.\n")
    hub.committed.clear()
    third = publisher.publish(variant)
    assert third["sent"] == ["README.md"] == hub.committed and third["unchanged"] == len(LAYOUT) - 1
    assert len(hub.received) == 1 and third["commit"] != first["commit"]


def test_public_only_when_asked(hub: HubServer, variant: Path, publisher: Any) -> None:
    assert publisher.publish(variant, public=True)["visibility"] == "public"
    assert not hub.repositories[REPO].private
    with pytest.raises(
        UsageError, match="me/small: is there and public, so everybody would see this; give --public"
    ):
        publisher.publish(variant)
    hub.add("me/other", private=True)
    with pytest.raises(UsageError, match="me/other: is there and private; make it public on"):
        publisher.publish(variant, repo="me/other", public=True)
    assert hub.names("me/other") == set()


def test_a_branch_begins_without_the_files_of_another(hub: HubServer, variant: Path, publisher: Any) -> None:
    hub.add(REPO, files={"old.safetensors": b"old", "README.md": b"old"})
    with pytest.raises(
        UsageError, match=r"holds old\.safetensors, no part of .*; choose another name or --revision"
    ):
        publisher.publish(variant)
    publisher.publish(variant, revision="int4")
    assert hub.names(REPO, "int4") == LAYOUT and hub.names(REPO) == {"old.safetensors", "README.md"}
    assert publisher.publish(variant, revision="int4")["sent"] == []
    publisher.publish(variant, repo="me/new", revision="int4")
    assert hub.names("me/new", "int4") == LAYOUT and hub.names("me/new") == set()


def test_words_of_others_in_the_repository_stay(hub: HubServer, variant: Path, publisher: Any) -> None:
    hub.add(REPO, files={"notes.md": b"notes", "README.md": b"old"})
    publisher.publish(variant)
    assert hub.names(REPO) == LAYOUT | {"notes.md"}


def test_a_dry_run_asks_nothing(hub: HubServer, variant: Path, publisher: Any) -> None:
    planned = publishing.plan(str(variant), REPO, publisher.store)
    told = planned.to_json()
    assert set(told["files"]) == LAYOUT and told["visibility"] == "private" and told["revision"] == "main"
    assert told["size_bytes"] == sum(told["files"].values()) > (variant / SHARD).stat().st_size
    assert hub.asked == []


def test_a_checkpoint_says_what_lies_beside_it(hub: HubServer, publisher: Any) -> None:
    from core.demo import CHECKPOINT

    done = publisher.publish("lance-demo")
    assert hub.names(REPO) == {path.name for path in CHECKPOINT.iterdir()}
    (remark,) = (each for each in done["remarks"] if "beside the folder" in each)
    assert remark.endswith("Qwen2.5-VL-ViT/vit.safetensors, Wan2.2_VAE.safetensors")


def export_job(store: Store, folder: Path) -> None:
    """What the job that exported to ``folder`` leaves in the database."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    result = {"path": str(folder), "files": {name: sha256_file(folder / name) for name in names}}
    store.execute(
        "INSERT INTO jobs (kind, spec, spec_hash, state, result, created_at) VALUES ('export', '{}', '', 'succeeded', "
        "?, '2026-01-01T00:00:00.000Z')",
        (json.dumps(result),),
    )


def test_an_export_is_what_its_job_wrote(hub: HubServer, tmp_path: Path, publisher: Any) -> None:
    folder = tmp_path / "small_coreml"
    (folder / "small.mlpackage" / "Data").mkdir(parents=True)
    (folder / "small.mlpackage" / "Manifest.json").write_text("{}")
    (folder / "small.mlpackage" / "Data" / "weight.bin").write_bytes(b"12")
    export_job(publisher.store, folder)
    publisher.publish(folder)
    names = {"small.mlpackage/Manifest.json", "small.mlpackage/Data/weight.bin"}
    assert hub.names(REPO) == names
    publisher.publish(folder, repo="me/again")
    (folder / "small.mlpackage" / "Data" / "weight.bin").write_bytes(b"34")
    with pytest.raises(
        CheckpointError, match=r"weight\.bin: has changed since it was exported; export it again"
    ):
        publisher.publish(folder, repo="me/third")
    (folder / "small.mlpackage" / "Data" / "weight.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weight\.bin: is gone since it was exported; export it again"):
        publisher.publish(folder, repo="me/third")
    (folder / "small.mlpackage" / "extra").touch()
    with pytest.raises(CheckpointError, match=r"holds small\.mlpackage/extra, no part of the export"):
        publisher.publish(folder, repo="me/third")
    assert "me/third" not in hub.repositories


def test_a_package_keeps_its_name(hub: HubServer, tmp_path: Path, publisher: Any) -> None:
    folder = tmp_path / "small.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{}")
    export_job(publisher.store, folder)
    publisher.publish(folder)
    assert hub.names(REPO) == {"small.mlpackage/Manifest.json"}


# --- what must not be published -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.log"], "holds train.log, no part of the variant; move that out of the folder"),
        ([".cache/huggingface/a", ".cache/b"], "holds .cache/, no part"),
        (
            ["consolidated.safetensors", "results.json", "x/y/z", "zz"],
            "consolidated.safetensors, results.json, x/ and 1 more",
        ),
        ([".DS_Store"], r"holds \.DS_Store"),
    ],
)
def test_what_is_no_part_of_the_layout_is_refused_by_name(
    hub: HubServer, variant: Path, publisher: Any, names: list[str], said: str
) -> None:
    for name in names:
        (variant / name).parent.mkdir(parents=True, exist_ok=True)
        (variant / name).write_text("private")
    with pytest.raises(CheckpointError, match=said):
        publisher.publish(variant)
    assert hub.asked == []


def test_what_a_variant_has_from_its_checkpoint_is_part_of_it(
    hub: HubServer, variant: Path, publisher: Any, tmp_path: Path
) -> None:
    record = json.loads((variant / OWN_FILE).read_text())
    origin = tmp_path / "origin"
    origin.mkdir()
    for folder in (origin, variant):
        (folder / "extra.json").write_text("{}")
    (variant / OWN_FILE).write_text(json.dumps(record | {"source_path": str(origin)}))
    assert "extra.json" in publishing.plan(str(variant), REPO, publisher.store).sizes
    (variant / "extra.json").write_text('{"changed": 1}')
    with pytest.raises(CheckpointError, match=r"holds extra\.json, no part"):
        publisher.publish(variant)


def test_links_to_elsewhere_are_refused(
    hub: HubServer, variant: Path, publisher: Any, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (variant / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"LICENSE: is a link to .*secret, outside of the folder"):
        publisher.publish(variant)
    (variant / "LICENSE").unlink()
    (variant / "LICENSE").symlink_to(variant / "recipe.toml")
    assert "LICENSE" in publishing.plan(str(variant), REPO, publisher.store).sizes
    (variant / "more").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="holds more, no part"):
        publisher.publish(variant)
    assert hub.asked == []


def change(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {next(iter(tensors)): torch.zeros_like(next(iter(tensors.values())))}, path)


def test_a_variant_that_is_not_as_it_was_made_is_refused(
    hub: HubServer, variant: Path, publisher: Any
) -> None:
    change(variant / SHARD)
    with pytest.raises(CheckpointError, match=rf"{SHARD}: SHA-256 is .*; make the variant again"):
        publisher.publish(variant)
    assert REPO not in hub.repositories
    record = json.loads((variant / OWN_FILE).read_text())
    (variant / OWN_FILE).write_text(json.dumps(record | {"files": {}}))
    with pytest.raises(CheckpointError, match=f"{SHARD} its record does not know"):
        publisher.publish(variant)
    assert REPO not in hub.repositories


def test_a_checkpoint_that_is_not_sound_is_refused(
    hub: HubServer, tiny_checkpoint: Path, tmp_path: Path, publisher: Any
) -> None:
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "copy")
    model = tmp_path / "copy" / tiny_checkpoint.name
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"surplus": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(CheckpointError, match="surplus is no tensor of a Lance"):
        publisher.publish(model)
    assert REPO not in hub.repositories


def test_a_file_that_does_not_arrive_is_named(hub: HubServer, variant: Path, publisher: Any) -> None:
    hub.loses = "vocab.json"
    with pytest.raises(WorkbenchError, match=r"vocab\.json did not arrive as it is here"):
        publisher.publish(variant)


def test_a_stopped_publication_shows_nothing_and_is_gone_on_with(
    hub: HubServer, variant: Path, publisher: Any
) -> None:
    publisher.stop_at = "committing"
    with pytest.raises(Cancelled):
        publisher.publish(variant)
    assert hub.names(REPO) == set() and len(hub.received) == 1
    publisher.stop_at = ""
    assert set(publisher.publish(variant)["sent"]) == LAYOUT
    assert hub.names(REPO) == LAYOUT and len(hub.received) == 1  # the large file was there already


def test_the_token_is_told_to_the_hub_alone(hub: HubServer, variant: Path, publisher: Any) -> None:
    done = publisher.publish(variant)
    assert f"Bearer {TOKEN}" in hub.headers
    database = b"".join(path.read_bytes() for path in publisher.store.path.parent.glob("runs.db*"))
    assert TOKEN not in json.dumps(done) + "".join(publisher.lines) and TOKEN.encode() not in database
