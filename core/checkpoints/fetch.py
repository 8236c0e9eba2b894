"""Fetching from the Hugging Face Hub: what a checkpoint takes is known and fits before the first byte is loaded.

huggingface_hub does the transfer: it goes on where a broken one stopped, keeps files in its cache (or in a folder of
the user's choice) and honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import read_json
from core.checkpoints.listing import Listing, RemoteFile, choose
from core.errors import CheckpointError, RetryLater, UsageError, WorkbenchError
from core.files import check_room, write_text

RELEASED = "bytedance-research/Lance"
"""The repository of the released models: Lance_3B, Lance_3B_Video, vision tower and VAE side by side."""

RECORD_FILE = "fetched.json"
"""Says where the files of a folder came from."""

_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
"""Packages whose errors mean that the other side could not be reached."""


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that was fetched or found in the cache."""

    repo: str
    revision: str | None
    """Commit hash; None where a folder was found that does not say."""
    folder: Path
    """The model's folder, which holds its config."""
    nbytes: int
    """Bytes of all chosen files."""
    loaded: int
    """Bytes of those that were not there before."""


def unreachable(error: BaseException) -> bool:
    """Whether an error of one of the HTTP clients that huggingface_hub has used means that nobody answered."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not packages.isdisjoint(_NETWORK)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into one-line errors."""
    from huggingface_hub import errors

    try:
        yield
    except WorkbenchError:
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{repo}: access must be granted first; accept its terms on huggingface.co and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{repo}: no such repository, or it is private and HF_TOKEN does not open it; "
            "look its name up on huggingface.co"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repo}: no such revision; leave it out for the newest") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repo}: no name of a repository; wanted owner/name") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise RetryLater(
            f"{repo}: not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE, or no network); "
            "try again with a network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise RetryLater(f"{repo}: the Hub answered {status or 'with an error'}; try again later") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkbenchError(
                f"{repo}: no space left on the device; free some and run it again, it goes on from there"
            ) from error
        reason = error.strerror or type(error).__name__
        raise RetryLater(f"{repo}: {reason}; try again, it goes on from there") from error
    except Exception as error:
        if not unreachable(error):
            raise
        raise RetryLater(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); try again, it goes on from there"
        ) from error


def list_files(repo: str, revision: str | None = None) -> Listing:
    """Ask the Hub what a repository holds.

    Raises:
        UsageError: no such repository or revision, or no access to it.
        RetryLater: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {
        sibling.rfilename: RemoteFile(sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    }
    return Listing(repo, str(info.sha), files)


def _present(listing: Listing, names: Sequence[str], out: Path | None) -> set[str]:
    """The chosen files that are already there in full."""
    from huggingface_hub import try_to_load_from_cache

    found = set()
    for name in names:
        if out is not None:
            place: Path | None = out / name
        else:
            cached = try_to_load_from_cache(listing.repo, name, revision=listing.revision)
            place = Path(cached) if isinstance(cached, str) else None
        if place is not None and place.is_file() and place.stat().st_size == listing.files[name].size:
            found.add(name)
    return found


@dataclass(frozen=True)
class Choice:
    """What a fetch would do."""

    listing: Listing
    model: str
    """The model's folder in the repository."""
    names: list[str]
    needed: int
    """Bytes that are not there yet."""

    @property
    def nbytes(self) -> int:
        """Bytes of all chosen files."""
        return sum(self.listing.files[name].size for name in self.names)


def look_up(
    repo: str = RELEASED,
    model: str | None = None,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = (),
    out: Path | None = None,
) -> Choice:
    """Ask the Hub what a fetch with the same arguments would load, and check that it fits.

    Raises:
        UsageError: as ``list_files`` and ``choose``.
        RetryLater: the Hub cannot be reached.
        WorkbenchError: not enough room on the disk.
    """
    from huggingface_hub import constants

    listing = list_files(repo, revision)
    model, names = choose(listing, model, patterns)
    present = _present(listing, names, out)
    needed = sum(listing.files[name].size for name in names if name not in present)
    check_room(out if out is not None else Path(constants.HF_HUB_CACHE), needed)
    return Choice(listing, model, names, needed)


def fetch(
    repo: str = RELEASED,
    model: str | None = None,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = (),
    out: Path | None = None,
) -> Fetched:
    """Fetch a checkpoint into the Hub's cache, or into ``out``; what is there already is not loaded again.

    With HF_HUB_OFFLINE set nothing is asked of the network: the checkpoint is looked up in the cache, or in ``out``.
    In ``out`` a ``fetched.json`` records repository, revision and files; the cache has the revision in its paths.

    Raises:
        UsageError, RetryLater, WorkbenchError: as ``look_up``; also offline and not in the cache.
        CheckpointError: a file did not arrive in full.
    """
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _cached(repo, model, revision, out)
    choice = look_up(repo, model, revision=revision, patterns=patterns, out=out)
    listing, names = choice.listing, choice.names
    with _hub_errors(repo):
        place = Path(snapshot_download(repo, revision=listing.revision, allow_patterns=names, local_dir=out))
    for name in names:
        size = (place / name).stat().st_size if (place / name).is_file() else 0
        if size != listing.files[name].size:
            raise CheckpointError(
                f"{place / name}: {size} bytes arrived, wanted {listing.files[name].size}; fetch it again"
            )
    if out is not None:
        _record(out, listing, choice.model, names)
    return Fetched(repo, listing.revision, place / choice.model, choice.nbytes, choice.needed)


def _record(out: Path, listing: Listing, model: str, names: Sequence[str]) -> None:
    files = {name: {"size": listing.files[name].size, "sha256": listing.files[name].sha256} for name in names}
    body = {"repo": listing.repo, "revision": listing.revision, "model": model, "files": files}
    write_text(out / RECORD_FILE, json.dumps(body, indent=1) + "\n")


def _cached(repo: str, model: str | None, revision: str | None, out: Path | None) -> Fetched:
    """What an earlier fetch left behind."""
    from huggingface_hub import errors, snapshot_download

    found: str | None
    if out is None:
        with _hub_errors(repo):
            try:
                place = Path(snapshot_download(repo, revision=revision, local_files_only=True))
            except errors.LocalEntryNotFoundError as error:
                # The Hub's listing is cached as well, and names files that were not chosen then.
                if not hasattr(error, "snapshot_path"):
                    raise
                place = Path(error.snapshot_path)
        found = place.name
    else:
        place = out
        record = read_json(out / RECORD_FILE) if (out / RECORD_FILE).is_file() else {}
        found = record.get("revision")
    sizes = {
        path.relative_to(place).as_posix(): RemoteFile(path.stat().st_size, None)
        for path in place.rglob("*")
        if path.is_file()
    }
    if not sizes:
        raise RetryLater(f"{place}: nothing was fetched there yet, and HF_HUB_OFFLINE is set; unset it")
    chosen, names = choose(Listing(repo, found or "", sizes), model)
    return Fetched(repo, found, place / chosen, sum(sizes[name].size for name in names), 0)
