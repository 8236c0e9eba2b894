"""A Hub of one process: an HTTP server on this machine that speaks as much of the Hub's protocol as a publication by
huggingface_hub takes, and keeps what it is sent in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_" + "notasecret" * 3
FIRST = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Commit:
    """A commit: its files by name, and its message."""

    oid: str
    files: dict[str, bytes]
    message: str = "initial commit"


@dataclass
class Repository:
    """A model repository: commits of each branch, oldest first."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, branch: str = "main") -> Commit:
        """The newest commit."""
        return self.branches[branch][-1]


@dataclass
class Refusal:
    """An answer that is given in place of the usual one."""

    status: int
    code: str = ""
    message: str = ""


class HubServer:
    """What the Hub holds, what it was asked, and what it is to refuse."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """Content of large files by SHA-256."""
        self.received: list[str] = []
        """SHA-256 of the large files that were sent, in order."""
        self.committed: list[str] = []
        """Names of the files in commits, in order."""
        self.asked: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.headers: list[str | None] = []
        """``Authorization`` of every request."""
        self.refusals: dict[tuple[str, str], Refusal] = {}
        """By method and a part of the path."""
        self.loses: str | None = None
        """A file that commits leave out."""
        self._count = 0

    def add(self, repo: str, *, private: bool = True, files: dict[str, bytes] | None = None) -> Repository:
        """A repository that somebody made before, with files in its second commit."""
        made = self.repositories[repo] = Repository(private)
        made.branches["main"] = [self.commit({".gitattributes": FIRST})]
        if files:
            made.branches["main"].append(self.commit({".gitattributes": FIRST, **files}, "files"))
        return made

    def commit(self, files: dict[str, bytes], message: str = "initial commit") -> Commit:
        """A new commit."""
        self._count += 1
        return Commit(hashlib.sha1(str(self._count).encode()).hexdigest(), files, message)

    def names(self, repo: str, branch: str = "main") -> set[str]:
        """The files of a branch, without the one that the Hub makes itself."""
        return set(self.repositories[repo].head(branch).files) - {".gitattributes"}


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file of that name by its SHA-256, beside git."""
    return name.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = unquote(address.path)
        self.hub.asked.append((self.command, path))
        self.hub.headers.append(self.headers.get("Authorization"))
        for (method, part), refusal in self.hub.refusals.items():
            if method == self.command and part in path:
                self._say(refusal.status, {"error": refusal.message}, refusal.code, refusal.message)
                return
        if self.command == "PUT":
            data = self.body
            self.hub.large[hashlib.sha256(data).hexdigest()] = data
            self.hub.received.append(hashlib.sha256(data).hexdigest())
            self._say(200, {})
        elif path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create()
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch()
        elif path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            self._of_model(f"{owner}/{name}", rest)
        else:
            self._say(404, {})

    def _say(self, status: int, body: Any, code: str = "", message: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._say(409, {"error": "You already created this model repo"})
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(repo, private=private)
        self._say(200, {"url": f"http://{self.headers['Host']}/{repo}"})

    def _batch(self) -> None:
        asked = json.loads(self.body)["objects"]
        objects = []
        for each in asked:
            upload = {"upload": {"href": f"http://{self.headers['Host']}/large/{each['oid']}", "header": {}}}
            known = each["oid"] in self.hub.large
            objects.append(each if known else {**each, "actions": upload})
        self._say(200, {"transfer": "basic", "objects": objects})

    def _of_model(self, repo: str, rest: list[str]) -> None:
        found = self.hub.repositories.get(repo)
        if found is None:
            self._say(404, {}, "RepoNotFound", "Repository not found")
            return
        verb, branch = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        commits = [commit for each in found.branches.values() for commit in each]
        chosen = next((c for c in commits if c.oid == branch), None)
        if verb == "branch":
            start = json.loads(self.body or b"{}").get("startingPoint")
            begin = next((c for c in commits if c.oid == start), found.head())
            found.branches[branch] = [begin]
            self._say(200, {})
        elif chosen is None and branch not in found.branches:
            self._say(404, {}, "RevisionNotFound", f"Invalid rev id: {branch}")
        elif verb == "revision":
            self._info(repo, found, chosen or found.head(branch))
        elif verb == "commits":
            newest = reversed(found.branches[branch])
            self._say(200, [_commit_json(commit) for commit in newest])
        elif verb == "preupload":
            files = json.loads(self.body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if is_large(f["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self._say(200, {"files": modes})
        else:
            self._commit(repo, found, branch)

    def _info(self, repo: str, found: Repository, commit: Commit) -> None:
        siblings = []
        for name, data in commit.files.items():
            entry: dict[str, Any] = {"rfilename": name}
            if "blobs" in self.query:
                entry |= {
                    "size": len(data),
                    "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                }
                if is_large(name):
                    digest = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        self._say(200, {"id": repo, "sha": commit.oid, "private": found.private, "siblings": siblings})

    def _commit(self, repo: str, found: Repository, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(found.head(branch).files)
        for line in lines[1:]:
            value = line["value"]
            if value["path"] == self.hub.loses:
                continue
            self.hub.committed.append(value["path"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        made = self.hub.commit(files, lines[0]["value"]["summary"])
        found.branches[branch].append(made)
        url = f"{constants.ENDPOINT}/{repo}/commit/{made.oid}"
        self._say(200, {"commitUrl": url, "commitOid": made.oid, "pullRequestUrl": None})


def _commit_json(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "authors": [],
        "date": "2026-01-01T00:00:00.000Z",
        "title": commit.message,
        "message": "",
    }


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that huggingface_hub talks to, with a token that is nobody's."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
