"""What the Hub answers to someone who writes, as one-line errors with the next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from core.checkpoints.fetch import unreachable
from core.errors import CheckpointError, RetryLater, UsageError, WorkbenchError

SETTINGS = "https://huggingface.co/settings/tokens"

_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_QUERY = re.compile(r"(?<=\S)\?\S+")

_LATER = frozenset((408, 409, 412, 423, 425, 429))
"""Answers below 500 that another attempt may change: too slow, too often, or somebody else wrote meanwhile."""


@contextmanager
def answers(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise while ``repo`` is written into the errors of this project."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        found = _translated(repo, error)
        if found is None:
            raise
        raise found from (None if found is error.__cause__ else error)


def _translated(repo: str, error: BaseException) -> WorkbenchError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo}: no name of a repository; wanted owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline(repo)
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        said = f": {_line(error.server_message)}" if error.server_message else ""
        return _refused(repo, status, f"{status}{said}")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return no_token(repo)
    if isinstance(error, RuntimeError):
        # The library wraps what goes wrong while a file is sent, and its transfer in Rust knows no other error.
        if isinstance(error.__cause__, WorkbenchError):
            return error.__cause__  # the job was asked to stop while a file was on its way
        inner = None if error.__cause__ is None else _translated(repo, error.__cause__)
        return inner or _broke_off(repo, error)
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return CheckpointError(
            f"{repo}: the Hub refuses the card: {_line(error)}; correct the head of README.md"
        )
    if isinstance(error, OSError):
        if error.filename:
            reason = error.strerror or type(error).__name__
            return WorkbenchError(f"{error.filename}: cannot be read ({reason}); nothing was published")
        return _broke_off(repo, error)
    if unreachable(error):
        return RetryLater(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); try again, it goes on from there"
        )
    return None


def _broke_off(repo: str, error: BaseException) -> WorkbenchError:
    """What an error of the transfer means, which keeps the server's status in its words."""
    text = _line(getattr(error, "strerror", None) or error) or type(error).__name__
    if status := _STATUS.search(text):
        return _refused(repo, int(status[1]), status[1])
    return RetryLater(f"{repo}: sending broke off ({text}); try again, it goes on from there")


def _refused(repo: str, status: int | None, reason: str) -> WorkbenchError:
    """What an answer of the server's means, by its status."""
    if status == 401:
        return UsageError(f"{repo}: the Hub does not know the token ({reason}); make one at {SETTINGS}")
    if status in (403, 404):
        return UsageError(
            f"{repo}: the Hub refuses ({reason}); wanted a token that may write to {repo.partition('/')[0]}: "
            f"make one at {SETTINGS}"
        )
    if status is None or status >= 500 or status in _LATER:
        return RetryLater(f"{repo}: the Hub answered {reason}; try again later, it goes on from there")
    return WorkbenchError(f"{repo}: the Hub refuses ({reason}); nothing was published")


def offline(repo: str) -> RetryLater:
    """HF_HUB_OFFLINE is set."""
    return RetryLater(f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it and publish again")


def no_token(repo: str) -> UsageError:
    """There is no token to write with."""
    return UsageError(
        f"{repo}: no token to write with; `hf auth login` keeps one from {SETTINGS} for every job "
        "(HF_TOKEN reaches only jobs whose supervisor was started with it)"
    )


def _line(said: object) -> str:
    """Words of others in one line, without what addresses carry behind a question mark: it may open them."""
    return " ".join(_QUERY.sub("", str(said)).split())[:300]
