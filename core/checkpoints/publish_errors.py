"""What the Hub answers to someone who writes, as one-line errors with the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.checkpoints.fetch import unreachable
from core.errors import CheckpointError, RetryLater, UsageError, WorkbenchError

SETTINGS = "https://huggingface.co/settings/tokens"

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
        raise found from error


def _translated(repo: str, error: BaseException) -> WorkbenchError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo}: no name of a repository; wanted owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline(repo)
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo, error)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return no_token(repo)
    if isinstance(error, RuntimeError):
        # The library wraps what goes wrong while a file is sent, and its transfer in Rust knows no other error.
        inner = None if error.__cause__ is None else _translated(repo, error.__cause__)
        return inner or RetryLater(
            f"{repo}: sending broke off ({_line(error)}); try again, it goes on from there"
        )
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return CheckpointError(
            f"{repo}: the Hub refuses the card: {_line(error)}; correct the head of README.md"
        )
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        if error.filename:
            return WorkbenchError(f"{error.filename}: cannot be read ({reason}); nothing was published")
        return RetryLater(f"{repo}: {reason}; try again, it goes on from there")
    if unreachable(error):
        return RetryLater(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); try again, it goes on from there"
        )
    return None


def _refused(repo: str, error: BaseException) -> WorkbenchError:
    """What an answer of the server's means, by its status."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None)
    reason = f"{status}: {' '.join(str(said).split())}" if said else str(status)
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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
