"""``recipes list|show``."""

from __future__ import annotations

import click

from core.quantization import recipe as recipes
from workbench.cli.session import Session, json_option, print_json, print_table


@click.group()
def command() -> None:
    """List and show recipes."""


@command.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes that come with the workbench."""
    found = [recipes.load(name) for name in recipes.names()]
    if as_json:
        print_json([recipe.to_json() for recipe in found])
        return
    rows = [
        [recipe.name, recipe.label, "yes" if recipe.needs_calibration else "no", recipe.summary]
        for recipe in found
    ]
    print_table(["recipe", "format", "calibration", "what it does"], rows)


@command.command("show")
@click.argument("recipe")
@click.option(
    "--checkpoint",
    metavar="NAME|FOLDER",
    help="Check its groups and widths against this checkpoint too, as quantizing does.",
)
@json_option
@click.pass_obj
def show_recipe(session: Session, recipe: str, checkpoint: str | None, as_json: bool) -> None:
    """Show a recipe, by name or as a TOML file: its text, checked; or what was understood of it as JSON."""
    found = recipes.load(recipe)
    if checkpoint is not None:
        from core.checkpoints.describe import describe  # 30 ms that listing does without
        from core.checkpoints.resolve import resolve
        from core.quantization.fit import check_shapes

        check_shapes(found, describe(resolve(checkpoint, session.look())))
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.text, nl=False)
