"""What every command shares: people read stderr, programs read stdout, and progress shows the time left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Out = Annotated[
    Path, typer.Option("--out", help="Directory to write; an existing artifact is replaced when the new one is whole.")
]


def say(text: str) -> None:
    """One line for people, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Without what would command the terminal: names and prompts come from files of others."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def emit(data: Any, as_json: bool) -> None:
    """The result for programs, on stdout, when asked for."""
    if as_json:
        print(json.dumps(data, indent=1, allow_nan=False))


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr.  Call the yielded function with (done, total, note='...')."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bar:
        task = bar.add_task(what, total=1, note="")

        def update(done: float, total: float, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


@contextmanager
def training_progress(what: str) -> Iterator[Callable[[Any], None]]:
    """`progress` for a training loop, which reports step, fraction done and scalars."""
    with progress(what) as update:

        def report(state: Any) -> None:
            loss = state.scalars.get("loss")
            update(100 * state.fraction, 100, note=f"step {state.step}" + (f", loss {loss:.4f}" if loss is not None else ""))

        yield report


def table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """A table on stderr; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(printable(title)), title_justify="left")
    for i, name in enumerate(header):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        # Text: what looks like rich's markup is none
        grid.add_row(*(Text(printable(f"{cell:.3f}" if isinstance(cell, float) else str(cell))) for cell in row))
    Console(stderr=True).print(grid)
