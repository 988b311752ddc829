"""The command line: the verbs of the road, one file per command, imports inside the command.

People read stderr, programs read stdout (`--json`).  A failed gate or a wrong input exits 1.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
import typer.core

from edgewam.cli._output import printable
from edgewam.core.errors import EdgewamError

# The disk is full, the quota is used up, a file may not grow further.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The order of the road, so that --help reads like it; a new command is a new file and its place here.
ORDER = (
    "demo", "collect", "data", "join", "convert", "train", "distill", "quantize", "compile", "validate", "profile", "shrink",
    "inspect", "doctor", "evaluate", "run", "control", "serve", "replay", "report", "prompt",
)  # fmt: skip


def _place(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


class _Road(typer.core.TyperGroup):
    """The commands; Ctrl-C ends any of them with a sentence that says how to go on."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """In the order of the road; typer would list groups of commands last."""
        return sorted(super().list_commands(ctx), key=_place)

    def invoke(self, ctx: typer.Context) -> Any:
        with _stop_says_how_to_go_on():
            return super().invoke(ctx)


@contextmanager
def _stop_says_how_to_go_on() -> Iterator[None]:
    """Turn Ctrl-C into an EdgewamError, also where the interrupted library made another exception of it (ctypes does)."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # Else it is ignored, or belongs to a caller who knows what to do; only the main thread may ask for signals.
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    try:
        if ours:
            signal.signal(signal.SIGINT, interrupt)
        yield
    except (EdgewamError, typer.Exit):
        raise  # the command took the interrupt itself and says more
    except (KeyboardInterrupt, Exception) as error:
        if not interrupted and not isinstance(error, KeyboardInterrupt):
            raise
        raise EdgewamError("Stopped. Run the same command again to go on: finished work was kept.") from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def build() -> typer.Typer:
    """The Typer application; every module of this package is a command, or a group of them."""
    app = typer.Typer(
        cls=_Road,
        help="Shrink a robot world-action model until it runs on the robot, and run it there.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    found = {info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")}
    for name in sorted(found, key=_place):
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def main() -> None:
    """Entry point of the `edgewam` script: an error that is the user's to act on is one sentence, not a traceback."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # robots of the user's are dotted modules, found where the command is started
    try:
        build()()
    except EdgewamError as error:
        sys.exit(f"edgewam: {printable(str(error))}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):  # what packages written in torch import at their top
            raise
        sys.exit(
            f"edgewam: This step needs the package '{error.name}', which is not installed. "
            "Install it with: pip install 'edgewam[train]'"
        )
    except OSError as error:
        if error.errno in _NO_SPACE:
            sys.exit(f"edgewam: {error}. Free some space, then run the same command again: finished work was kept.")
        if error.filename is None:
            raise
        sys.exit(f"edgewam: {printable(str(error))}. Check that path and its permissions, or give another one.")
