"""Publishing to the Hugging Face Hub: a folder is verified to the last byte, then sent in one commit.

huggingface_hub does the transfer: what the Hub has already is not sent again, so a publication that was stopped goes on
where it was, and nothing is to be seen of it before its commit. The token is the library's affair (``hf auth login``,
HF_TOKEN): it is neither read out nor kept here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints.publish_card import Card, card, sent, sizes
from core.checkpoints.publish_contents import Contents, contents
from core.checkpoints.publish_errors import answers, no_token, offline
from core.errors import CheckpointError, UsageError, WorkbenchError
from core.files import sha256_file
from core.store.columns import size

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

    from core.store import Store

MAIN = "main"

Say = Callable[[str], None]
Progress = Callable[[int, int, str, str], None]
"""Called with (done, in all, unit, message)."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".npz", ".mlmodel", ".index.json")
"""What a reader of a repository may take for weights of the model."""


@dataclass(frozen=True)
class Plan:
    """What would be published where, as far as it is known without asking the Hub."""

    contents: Contents
    card: Card
    repo: str
    public: bool
    branch: str

    @cached_property
    def files(self) -> dict[str, Path | bytes]:
        """What is sent, by its name in the repository."""
        return sent(self.contents, self.card)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        return sizes(self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def to_json(self) -> dict[str, Any]:
        """For a dry run."""
        return {
            "name": self.contents.name,
            "kind": self.contents.kind,
            "path": str(self.contents.folder),
            "repository": self.repo,
            "visibility": "public" if self.public else "private",
            "revision": self.branch,
            "files": self.sizes,
            "size_bytes": self.size_bytes,
            "evaluations": list(self.card.runs),
            "remarks": list(self.card.remarks),
        }


@dataclass(frozen=True)
class Published:
    """A commit of the Hub's that holds the folder."""

    url: str
    """Of the commit."""
    sent: dict[str, int]
    """Bytes by the names of the files that were new or had changed."""
    unchanged: int
    """Files that the Hub had already, as they are."""


def check_target(repo: str, revision: str | None) -> None:
    """Check the name of a repository and of a branch, as far as that can be done here.

    Raises:
        UsageError: one of them cannot be.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented as being there

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(
            f"{repo}: no name of a repository; wanted owner/name of letters, digits and - _ . between them"
        ) from None
    if repo.count("/") != 1:
        raise UsageError(
            f"{repo}: names no owner; wanted owner/name, the owner being you or an organisation of yours"
        )
    if revision is not None and (not revision or not set(revision).isdisjoint(" ~^:?*[\\")):
        raise UsageError(f"revision {revision!r}: no name of a branch")


def check_access(repo: str) -> None:
    """Check that the Hub may be asked, and that there is a token; whether that one may write only the Hub can tell.

    Raises:
        RetryLater: HF_HUB_OFFLINE is set.
        UsageError: there is no token.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise offline(repo)
    if get_token() is None:
        raise no_token(repo)


def plan(source: str, repo: str, store: Store, *, public: bool = False, revision: str | None = None) -> Plan:
    """Look at what publishing ``source``, a name or folder, as ``repo`` would send; the Hub is not asked.

    Raises:
        UsageError: a name that cannot be, or nothing of that name.
        CheckpointError: the folder is damaged, or holds what is no part of it.
    """
    check_target(repo, revision)
    found = contents(source, store)
    return Plan(found, card(found, store), repo, public, revision or MAIN)


def publish(planned: Plan, say: Say, progress: Progress) -> Published:
    """Verify the folder and send it; the repository and the branch are made if they are not there.

    A repository that is there keeps what else it holds, but none with other weights is taken, nor one that is public
    when a private one was asked for.

    Raises:
        UsageError: no token, one that may not write there, or a repository that is something else.
        CheckpointError: the files are not sound, or not as they were made.
        RetryLater: the Hub cannot be reached, or not now.
        WorkbenchError: the Hub refuses the files.
    """
    from huggingface_hub import HfApi

    check_access(planned.repo)
    api = HfApi()
    with answers(planned.repo):
        remote = _look(api, planned)
    digests = _Digests(planned, _verified(planned, progress))
    say(f"{planned.contents.name}: every file is sound")
    with answers(planned.repo):
        _make(api, planned, remote)
        return _send(api, planned, remote, digests, say, progress)


@dataclass(frozen=True)
class _Remote:
    """The repository as it is."""

    exists: bool
    branch: bool
    files: dict[str, RepoSibling] = field(default_factory=dict)
    """Of the branch."""


def _look(api: HfApi, planned: Plan) -> _Remote:
    from huggingface_hub import errors

    repo = planned.repo
    try:
        info = api.model_info(repo)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return _Remote(False, planned.branch == MAIN)
    if planned.public and info.private:
        raise UsageError(
            f"{repo}: is there and private; make it public on huggingface.co, or leave --public out and publish to it "
            "as it is"
        )
    if not planned.public and not info.private:
        raise UsageError(
            f"{repo}: is there and public, so everybody would see this; give --public if they may, or choose another "
            "name"
        )
    try:
        remote = _Remote(True, True, _files(api, repo, planned.branch))
    except errors.RevisionNotFoundError:
        return _Remote(True, False)
    strange = sorted(name for name in remote.files if name.endswith(_WEIGHTS) and name not in planned.files)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UsageError(
            f"{repo}: holds {strange[0]}{more}, no part of {planned.contents.name}, which readers would take for its "
            "weights; choose another name or --revision, or delete that there"
        )
    return remote


def _files(api: HfApi, repo: str, revision: str) -> dict[str, RepoSibling]:
    info = api.model_info(repo, revision=revision, files_metadata=True)
    return {each.rfilename: each for each in info.siblings or []}


def _verified(planned: Plan, progress: Progress) -> dict[str, str]:
    """The SHA-256 of files by name, after every tensor was read and every file compared with its record."""
    found = planned.contents
    if found.kind == "export":
        hashes = {}
        for done, (name, path) in enumerate(found.files.items()):
            progress(done, len(found.files), "files", f"verifying {name}")
            hashes[name] = sha256_file(path)
            if hashes[name] != found.recorded[name]:
                raise CheckpointError(f"{path}: has changed since it was exported; export it again")
        return hashes
    weights = {name for name in found.files if name.endswith(".safetensors") and "/" not in name}
    for name in sorted(found.recorded.keys() ^ weights if found.kind == "variant" else ()):
        lacks = "its record does not know" if name in weights else "is gone, which its record knows"
        raise CheckpointError(f"{found.folder}: {name} {lacks}; make the variant again")
    from core.checkpoints.verify import verify  # imports torch

    seen = verify(found.folder, lambda done, total: progress(done, total, "tensors", "verifying"))
    if seen.problems:
        more = f" (and {len(seen.problems) - 1} more)" if len(seen.problems) > 1 else ""
        raise CheckpointError(f"{seen.problems[0]}{more}")
    return {name: digest for name, digest in seen.hashes.items() if name in weights}


class _Digests:
    """Compares files with those of the Hub, reading each once at most."""

    def __init__(self, planned: Plan, hashes: dict[str, str]) -> None:
        self._planned = planned
        self._hashes = hashes

    def sha256(self, name: str) -> str:
        if name not in self._hashes:
            content = self._planned.files[name]
            self._hashes[name] = (
                hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_file(content)
            )
        return self._hashes[name]

    def differing(self, remote: dict[str, RepoSibling]) -> list[str]:
        """The names of files that the Hub has not, or has otherwise."""
        return [name for name in self._planned.sizes if not self._same(name, remote.get(name))]

    def _same(self, name: str, there: RepoSibling | None) -> bool:
        if there is None or there.size != self._planned.sizes[name]:
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == self.sha256(name)
        content = self._planned.files[name]
        data = content if isinstance(content, bytes) else content.read_bytes()
        return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _make(api: HfApi, planned: Plan, remote: _Remote) -> None:
    """Make the repository and the branch, where they are not there."""
    from huggingface_hub import errors

    repo = planned.repo
    if not remote.exists:
        try:
            api.create_repo(repo, private=not planned.public, repo_type="model")
        except errors.HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise UsageError(
                f"{repo}: the name is taken, by what is no model or what your token does not see; choose another"
            ) from error
    if not remote.branch:
        # From the first commit, which holds no model: a branch would else begin with the files of another.
        first = api.list_repo_commits(repo)[-1].commit_id
        api.create_branch(repo, branch=planned.branch, revision=first, exist_ok=True)


def _send(
    api: HfApi, planned: Plan, remote: _Remote, digests: _Digests, say: Say, progress: Progress
) -> Published:
    from huggingface_hub import CommitOperationAdd

    repo, counts = planned.repo, planned.sizes
    changed = digests.differing(remote.files)
    total = sum(counts[name] for name in changed)
    say(f"{repo}: {len(changed)} of {len(counts)} files are new or have changed, {size(total)}")
    operations = []
    for done, name in enumerate(changed):
        told = f"sending {name}, {size(counts[name])}"
        progress(done, len(changed), "files", told)
        say(f"{told} ({done + 1} of {len(changed)})")
        content = planned.files[name]
        operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        # Large files go one by one, so that a stop is heard between them; small ones go with the commit.
        api.preupload_lfs_files(repo, [operation], revision=planned.branch, free_memory=False)
        if operation.upload_info.sha256.hex() != digests.sha256(name):
            raise CheckpointError(f"{content!r}: was changed while it was published; publish it again")
        operations.append(operation)
    progress(len(changed), len(changed), "files", "committing")
    commit = api.create_commit(
        repo, operations, commit_message=f"Publish {planned.contents.name}", revision=planned.branch
    )
    if left := digests.differing(_files(api, repo, commit.oid)):
        raise WorkbenchError(
            f"{repo}: {left[0]} did not arrive as it is here; look for a .gitignore there, then publish again"
        )
    return Published(commit.commit_url, {name: counts[name] for name in changed}, len(counts) - len(changed))
