"""What a repository of the Hub holds, and which files of it make a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from core.checkpoints.describe import CONFIG_FILE, HF_CONFIG_FILE, OWN_FILE
from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER
from core.checkpoints.source import INDEX_FILE, WEIGHT_FILES
from core.errors import UsageError

CAUSAL_LM_FILES = (
    HF_CONFIG_FILE, "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", OWN_FILE, "recipe.toml",
)  # fmt: skip
"""What a causal LM, or a variant of one, takes beside its weights."""

SHARDS = "model-*-of-*.safetensors"
"""What an index of shards names; other weights beside them are the same ones again."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes and, for large files, its SHA-256."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """A repository at one revision."""

    repo: str
    revision: str
    """Commit hash."""
    files: dict[str, RemoteFile]


def choose(listing: Listing, model: str | None = None, patterns: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Which model folder is meant (``"."`` for the top), and which files it takes.

    Of a Lance that is the model's folder with the vision tower and the VAE that upstream keeps beside it; of a causal
    LM config, tokenizer and weights in safetensors; or what matches ``patterns`` (of the shell's kind, ``*`` also
    matching ``/``).

    Raises:
        UsageError: no checkpoint in the repository, several and none named, or nothing matches.
    """
    folders, files_of = _models(listing)
    known = ", ".join(folders)
    if model is None:
        if len(folders) > 1 and "." in folders and files_of is _causal_lm:
            # What else lies in folders below a model of its own is not what its name stands for.
            folders = ["."]
        if len(folders) > 1:
            raise UsageError(f"{listing.repo}: holds {known}; name one with --model")
        (model,) = folders
    if model not in folders:
        raise UsageError(f"{listing.repo}: holds no checkpoint {model}; known are {known}")
    if patterns:
        chosen = [name for name in sorted(listing.files) if any(fnmatch(name, wanted) for wanted in patterns)]
        if not chosen:
            raise UsageError(f"{listing.repo}: no file matches {', '.join(patterns)}; leave the patterns out")
        return model, chosen
    return model, files_of(listing, model, folders)


def _models(
    listing: Listing,
) -> tuple[list[str], Callable[[Listing, str, Sequence[str]], list[str]]]:
    """The folders that are checkpoints of one family, and what finds the files of one."""
    if found := _with(listing, CONFIG_FILE):
        return found, _lance
    folders = _with(listing, HF_CONFIG_FILE)
    found = [folder for folder in folders if _weights(listing, folder)]
    if found:
        return found, _causal_lm
    if folders:
        raise UsageError(
            f"{listing.repo}: holds {HF_CONFIG_FILE} but no weights in safetensors beside it; other files "
            "are not read: take a repository or --revision that has them"
        )
    raise UsageError(
        f"{listing.repo}: holds no checkpoint: neither {CONFIG_FILE} (a Lance) nor {HF_CONFIG_FILE} (a causal LM) in "
        "it; give another repository"
    )


def _with(listing: Listing, name: str) -> list[str]:
    """The folders that have a file of that name."""
    return sorted(
        {str(PurePosixPath(path).parent) for path in listing.files if PurePosixPath(path).name == name}
    )


def _lance(listing: Listing, model: str, folders: Sequence[str]) -> list[str]:
    others = tuple(f"{folder}/" for folder in folders if folder != ".")
    chosen = [
        name
        for name in sorted(listing.files)
        if (name.startswith(f"{model}/") if model != "." else not name.startswith(others))
        or name.startswith(f"{VISION_FOLDER}/")
        or name in VAE_FILES
    ]
    return [name for name in chosen if not PurePosixPath(name).name.startswith(".git")]


def _causal_lm(listing: Listing, model: str, folders: Sequence[str]) -> list[str]:
    own = {_inside(model, name) for name in CAUSAL_LM_FILES}
    return sorted({name for name in listing.files if name in own} | set(_weights(listing, model)))


def _weights(listing: Listing, folder: str) -> list[str]:
    """The index and the shards it names, or the one file that is read where there are several."""
    index = _inside(folder, INDEX_FILE)
    if index in listing.files:
        beside = [path for path in map(PurePosixPath, listing.files) if str(path.parent) == folder]
        shards = [str(path) for path in beside if fnmatch(path.name, SHARDS)]
        # Names of another kind are only in the index: everything that may be a shard, then.
        return [index, *(shards or [str(path) for path in beside if path.suffix == ".safetensors"])]
    single = [_inside(folder, name) for name in WEIGHT_FILES]
    return next(([name] for name in single if name in listing.files), [])


def _inside(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
