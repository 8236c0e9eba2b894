"""``doctor``: what is installed, what the machine has, and whether the database is sound. Imports none of
what it looks for."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click

from core.errors import WorkbenchError
from core.files import expanded
from core.store import SCHEMA_VERSION, Store, default_path
from core.store.filesystems import network_filesystem
from core.store.manifest import hardware, missing
from workbench.__main__ import version
from workbench.cli.session import Session, json_option, print_json

NEEDED = ("torch", "transformers", "safetensors", "textual", "sqlite-utils")
OPTIONAL = {
    "diffusers": "pictures (t2i): pip install 'lance-workbench[vae]'",
    "triton": "fast kernels on NVIDIA GPUs: pip install 'lance-workbench[triton]'",
}


class Check(NamedTuple):
    """One finding: ``state`` is ok, warning or error; ``text`` is one line, with the next step where there is
    one."""

    subject: str
    state: str
    text: str


def _installation() -> Iterator[Check]:
    yield Check("lance-workbench", "ok", version())
    supported = sys.version_info >= (3, 11)
    text = platform.python_version() + ("" if supported else "; 3.11 or newer is needed")
    yield Check("python", "ok" if supported else "error", text)
    for name in NEEDED:
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "error", f"not installed: pip install {name}")
    for name, purpose in OPTIONAL.items():
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "ok", f"not installed; for {purpose}")


def _machine() -> Iterator[Check]:
    found = hardware()
    memory = found["memory_bytes"] / 2**30
    yield Check("processor", "ok", f"{found['cpu']}, {found['cores']} cores, {memory:.0f} GiB memory")
    for gpu in found["gpus"]:
        text = f"{gpu['name']}, {gpu['memory.total']}, driver {gpu['driver_version']}, {gpu['uuid']}"
        yield Check(f"GPU {gpu['index']}", "ok", text)
    if not found["gpus"]:
        yield Check("GPU", "ok", "none that nvidia-smi reports; jobs run on the processor")
    yield _logout()


def _logout() -> Check:
    """Whether systemd kills a user's processes at logout, sessions of their own included."""
    value = "no"
    for file in (
        Path("/etc/systemd/logind.conf"),
        *sorted(Path("/etc/systemd/logind.conf.d").glob("*.conf")),
    ):
        if file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                key, _, setting = line.partition("=")
                if key.strip() == "KillUserProcesses":
                    value = setting.strip().lower()
    user = os.environ.get("USER") or str(os.getuid())
    lingering = Path(f"/var/lib/systemd/linger/{user}").exists()
    if value in ("yes", "true", "1", "on") and not lingering:
        text = "KillUserProcesses=yes: logging out ends your jobs; run `loginctl enable-linger`, and this shell by "
        return Check("logout", "warning", text + "`systemd-run --user --scope`")
    return Check("logout", "ok", "jobs go on after you log out")


def _terminal() -> Iterator[Check]:
    term, colour = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "")
    if term in ("", "dumb"):
        yield Check("terminal", "warning", f"TERM={term or 'unset'}: the app cannot run here, commands can")
        return
    many = colour in ("truecolor", "24bit")
    text = f"TERM={term} COLORTERM={colour or 'unset'}"
    if not many:
        text += "; colours are reduced to 256. Over SSH: SendEnv COLORTERM here, AcceptEnv COLORTERM there"
    if os.environ.get("NO_COLOR"):
        text += "; NO_COLOR is set"
    if os.environ.get("TMUX"):
        text += "; tmux: `set -g set-clipboard on` lets copying through"
    yield Check("terminal", "ok" if many else "warning", text)


def _database(path: Path) -> Iterator[Check]:
    if not path.exists():
        yield Check("database", "ok", f"{path} does not exist yet; `lance-workbench demo` makes it")
        return
    try:
        store = Store.open(path, create=False, readonly=True)
    except WorkbenchError as error:
        yield Check("database", "error", str(error))
        return
    with store:
        try:
            yield from _opened(store)
        except WorkbenchError as error:
            yield Check("database", "error", str(error))


def _opened(store: Store) -> Iterator[Check]:
    yield Check("database", "ok", f"{store.path}, schema version {SCHEMA_VERSION}")
    problems = store.integrity_errors()
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    yield Check("integrity", "error" if problems else "ok", f"{problems[0]}{more}" if problems else "sound")
    mode = str(store.value("PRAGMA journal_mode"))
    network = network_filesystem(store.path.parent)
    if network and mode == "wal":
        text = f"journal mode wal on {network}, where it is unsafe; keep the database on a local disk (--db)"
        yield Check("filesystem", "error", text)
    elif network:
        yield Check("filesystem", "warning", f"{network}: SQLite is slow here; a local disk is better (--db)")
    else:
        yield Check("filesystem", "ok", f"local, journal mode {mode}")
    writable = os.access(store.path, os.W_OK) and os.access(store.path.parent, os.W_OK)
    if not writable:
        yield Check("permissions", "warning", f"{store.path} or its folder cannot be written: reading only")
    yield from _manifests(store)


def _manifests(store: Store) -> Iterator[Check]:
    runs = store.runs("state=succeeded kind=evaluate")
    lacking = [(row["id"], keys) for row in runs if (keys := missing(store.run(row["id"])["manifest"]))]
    if lacking:
        run_id, keys = lacking[0]
        more = f", and {len(lacking) - 1} more runs" if len(lacking) > 1 else ""
        yield Check("manifests", "error", f"run {run_id} lacks {', '.join(keys)}{more}")
    else:
        yield Check("manifests", "ok", f"complete for {len(runs)} evaluations")


@click.command()
@json_option
@click.pass_obj
def command(session: Session, as_json: bool) -> int:
    """Check the installation, the machine and the database. Exits with 1 if anything is wrong."""
    path = expanded(session.db).absolute() if session.db is not None else default_path()
    checks = [*_installation(), *_machine(), *_terminal(), *_database(path)]
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        width = max(len(check.subject) for check in checks)
        marks = {"ok": "✓", "warning": "!", "error": "✗"}
        for check in checks:
            click.echo(f"{marks[check.state]} {check.subject.ljust(width)}  {check.text}")
    return 1 if any(check.state == "error" for check in checks) else 0
