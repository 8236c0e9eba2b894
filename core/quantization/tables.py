"""Reading tables of a parsed TOML file strictly: whatever does not fit is named with its file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UsageError

_WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", list: "a list"}


class Tables:
    """The tables of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def table(self, content: Any, key: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        """``content`` as a table that holds no other than the ``allowed`` keys.

        Raises:
            UsageError: it is none, or holds another.
        """
        if not isinstance(content, dict):
            raise UsageError(f"{self.path}: {key} is {'missing' if content is None else 'no table'}")
        for name in content:
            if name not in allowed:
                where = f"{key}.{name}" if key else name
                raise UsageError(f"{self.path}: unknown key {where}; there are {', '.join(allowed)}")
        return content

    def value(self, table: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
        """The value of ``key`` (whose last part is its name in ``table``), of a Python type.

        Raises:
            UsageError: it is missing without a default, or of another type.
        """
        found = table.get(key.rpartition(".")[2], default)
        if found is None:
            raise UsageError(f"{self.path}: {key} is missing")
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise UsageError(f"{self.path}: {key} is {found!r}, wanted {_WORDS[kind]}")
        return found

    def known(self, key: str, found: Any, allowed: tuple[str, ...]) -> None:
        """Check that every item of ``found`` is among ``allowed``.

        Raises:
            UsageError: the first that is not.
        """
        for item in found:
            if item not in allowed:
                raise UsageError(f"{self.path}: {key} has {item!r}; there are {', '.join(allowed)}")
