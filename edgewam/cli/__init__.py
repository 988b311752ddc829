"""The command line: the verbs of the road, one file per command, imports inside the command.

People read stderr, programs read stdout (`--json`).  A failed gate or a wrong input exits 1.
"""

from __future__ import annotations

import errno
import importlib
import pkgutil
import sys

import typer

from edgewam.core.errors import EdgewamError

# The order of the road, so that --help reads like it; a new command is a new file and its place here.
ORDER = ("demo", "collect", "train", "distill", "compile", "validate", "profile", "inspect", "evaluate", "run", "prompt")


def build() -> typer.Typer:
    """The Typer application; every module of this package is a command, or a group of them."""
    app = typer.Typer(
        help="Shrink a robot world-action model until it runs on the robot, and run it there.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    found = {info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")}
    for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def main() -> None:
    """Entry point of the `edgewam` script: an error that is the user's to act on is one sentence, not a traceback."""
    try:
        build()()
    except EdgewamError as error:
        sys.exit(f"edgewam: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"edgewam: {error}. Free some space, then run the same command again: finished work was kept.")
