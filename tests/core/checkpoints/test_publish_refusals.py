"""Publishing that cannot be: one line with the next step for every way, and the right exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, HubServer, Refusal
from huggingface_hub import constants

from core.checkpoints import publish as publishing
from core.checkpoints.publish_errors import answers
from core.errors import Cancelled, RetryLater, UsageError, WorkbenchError

REPO = "me/small"

REFUSALS: list[tuple[str, str, Refusal, type[WorkbenchError], str]] = [
    ("GET", "/api/models", Refusal(401, "", "Invalid credentials in Authorization header"), UsageError,
     "the Hub does not know the token .401: Invalid credentials.*; make one at https"),
    ("POST", "/repos/create", Refusal(403, "", "You don't have the rights"), UsageError,
     "the Hub refuses .403: You don't have the rights.; wanted a token that may write to me:"),
    ("POST", "/repos/create", Refusal(409, "", "taken"), UsageError, "the name is taken, by what is no model"),
    ("POST", "/commit/", Refusal(403, "", "storage limit reached"), UsageError, "storage limit reached"),
    ("POST", "/commit/", Refusal(412, "", "A commit has happened since"), RetryLater, "the Hub answered 412"),
    ("GET", "/api/models", Refusal(429, "", "slow down"), RetryLater, "the Hub answered 429: slow down; try again"),
    ("POST", "/commit/", Refusal(500, "", "oops"), RetryLater, "the Hub answered 500: oops; try again later"),
    ("POST", "/commit/", Refusal(413, "", "too large"), WorkbenchError, "the Hub refuses .413: too large.; nothing"),
    ("PUT", "/large/", Refusal(403, "", "no"), UsageError, "the Hub refuses .403: no"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "refusal", "kind", "said"), REFUSALS, ids=[r[4] for r in REFUSALS]
)
def test_refusals_are_one_line_with_the_next_step(
    hub: HubServer,
    variant: Path,
    publisher: Any,
    method: str,
    path: str,
    refusal: Refusal,
    kind: type[WorkbenchError],
    said: str,
) -> None:
    hub.refusals[method, path] = refusal
    with pytest.raises(WorkbenchError, match=rf"^me/small: .*{said}") as caught:
        publisher.publish(variant)
    assert caught.type is kind and "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert REPO not in hub.repositories or hub.names(REPO) == set()


TRANSFER = (
    "Network error: Request error: HTTP status client error ({}), domain: https://hf.co/x?Signature=secret"
)
BROKEN: list[tuple[Exception, type[WorkbenchError], str]] = [
    (
        ConnectionError(TRANSFER.format("403 Forbidden")),
        UsageError,
        "refuses .403.; wanted a token that may write to me:",
    ),
    (ConnectionError(TRANSFER.format("401 Unauthorized")), UsageError, "the Hub does not know the token"),
    (ConnectionError(TRANSFER.format("429 Too Many")), RetryLater, "the Hub answered 429; try again later"),
    (
        RuntimeError("data processing:\nhttps://hf.co/x?Signature=secret"),
        RetryLater,
        "broke off .data processing: http",
    ),
    (
        ConnectionResetError(104, "Connection reset by peer"),
        RetryLater,
        r"broke off .Connection reset by peer.; try",
    ),
]


@pytest.mark.parametrize(("error", "kind", "said"), BROKEN, ids=[each[2] for each in BROKEN])
def test_a_transfer_that_breaks_off_is_one_line(
    error: Exception, kind: type[WorkbenchError], said: str
) -> None:
    with pytest.raises(WorkbenchError, match=rf"^me/small: .*{said}") as caught, answers(REPO):
        raise error
    assert caught.type is kind and "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_stop_while_a_file_is_on_its_way_is_a_stop() -> None:
    with pytest.raises(Cancelled, match=r"^job 1: cancelled$"), answers(REPO):
        try:
            raise Cancelled("job 1: cancelled")
        except Cancelled as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error


def test_a_fault_of_our_own_is_not_called_one_of_the_hub() -> None:
    with pytest.raises(KeyError), answers(REPO):
        raise KeyError("bug")
    with (
        pytest.raises(WorkbenchError, match=r"vocab\.json: cannot be read .Permission denied.") as caught,
        answers(REPO),
    ):
        raise PermissionError(13, "Permission denied", "vocab.json")
    assert caught.value.exit_code == 1


def test_nobody_answers(
    hub: HubServer, variant: Path, publisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RetryLater, match=r"^me/small: the Hub cannot be reached .*; try again"):
        publisher.publish(variant)


def test_offline_and_without_a_token_nothing_is_asked(
    hub: HubServer, variant: Path, publisher: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RetryLater, match="HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"):
        publisher.publish(variant)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="no token to write with; `hf auth login` keeps one"):
        publisher.publish(variant)
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["small", "me/", "me/a b", "me/../x", "a/b/c", "-x/y"])
def test_names_that_cannot_be(repo: str) -> None:
    with pytest.raises(UsageError, match="wanted owner/name"):
        publishing.check_target(repo, None)
    with pytest.raises(UsageError, match="revision 'a b': no name of a branch"):
        publishing.check_target("me/small", "a b")
