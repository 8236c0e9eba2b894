"""The table of actions: every action exists in the app, and every one has its command."""

from __future__ import annotations

from collections import Counter

import click
import pytest

from workbench import actions
from workbench.application import WorkbenchApp, _area
from workbench.cli.main import root
from workbench.screens.new_job import NewJob


def command_of(path: str) -> click.Command:
    """The command that ``path`` names; an error names the part that is missing."""
    command: click.Command = root
    context = click.Context(root)
    for word in path.split():
        assert isinstance(command, click.Group), f"{path}: nothing below {command.name}"
        found = command.get_command(context, word)
        assert found is not None, f"{path}: no command {word!r}"
        command = found
    return command


@pytest.mark.parametrize("action", actions.ACTIONS, ids=lambda action: action.id)
def test_every_action_has_a_command_that_does_the_same(action: actions.Action) -> None:
    if action.cli != "--help":
        options = {name for parameter in command_of(action.cli).params for name in parameter.opts}
        assert "--json" in options, f"{action.cli} has no --json"


@pytest.mark.parametrize("action", actions.ACTIONS, ids=lambda action: action.id)
def test_every_action_has_its_method(action: actions.Action) -> None:
    if action.screen == "app":
        owners: list[type] = [WorkbenchApp]
    elif action.screen == "form":
        owners = [NewJob]
    else:
        names = actions.TABLES if action.screen == "table" else (action.screen,)
        owners = [type(_area(name)) for name in names]
    for owner in owners:
        assert callable(getattr(owner, f"action_{action.method}", None)), f"{owner.__name__}: {action.id}"


def test_no_key_does_two_things_on_one_screen() -> None:
    for area in actions.SCREENS:
        keys = Counter(action.key for action in actions.of_screen(area))
        assert max(keys.values()) == 1, keys.most_common(1)


def test_the_key_bar_ends_with_help_and_names_paired_keys() -> None:
    for area in actions.SCREENS:
        assert actions.hints(area)[-1] == ("?", "help")
    assert ("N P", "mismatch") in actions.hints("compare")
