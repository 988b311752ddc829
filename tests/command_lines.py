"""A command line that a page shows, put to the parser that a user's would meet."""

from __future__ import annotations

import shlex

import typer

from edgewam import cli


def parse(line: str) -> None:
    """Fails on an unknown command or option, a missing argument, a wrong type; nothing runs."""
    group = typer.main.get_command(cli.build())
    assert isinstance(group, typer.core.TyperGroup)
    name, *arguments = shlex.split(line)[1:]
    command = group.get_command(typer.Context(group), name)
    assert command is not None, f"there is no command '{name}'"
    command.make_context(name, arguments)
