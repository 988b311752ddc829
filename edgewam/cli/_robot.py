"""The option `--task` of the commands that open a robot."""

from __future__ import annotations

from typing import Annotated

import typer

Task = Annotated[str | None, typer.Option(help="One of the robot's tasks, by default its first; a wrong name lists them all.")]
