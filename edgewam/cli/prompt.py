"""`edgewam prompt`: the named instructions of a bundle, and how to add one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import say

app = typer.Typer(help="List or add the named instructions of a bundle.", no_args_is_help=True)


@app.command("list")
def list_(bundle: Annotated[Path, typer.Argument(help="Bundle directory.")]) -> None:
    """Print the instructions of a bundle, one a line."""
    from edgewam.runtime.prompts import prompt_names

    print("\n".join(prompt_names(bundle)))


@app.command()
def add(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    instruction: Annotated[str, typer.Argument(help="What the robot is told to do.")],
) -> None:
    """Embed an instruction with the policy's text encoder and store it in the bundle."""
    from edgewam.recipes.deploy import add_prompt

    add_prompt(bundle, instruction)
    say(f"{bundle} now knows '{instruction}'.")
