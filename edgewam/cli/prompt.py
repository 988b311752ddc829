"""`edgewam prompt`: the instructions that bundles and policies know, how to add one, and caches of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._device import Device
from edgewam.cli._output import progress, say

app = typer.Typer(help="List or add the instructions of a bundle or a policy; embed those of a dataset.", no_args_is_help=True)

Place = Annotated[Path, typer.Argument(help="Directory of a bundle or a policy.")]


@app.command("list")
def list_(place: Place) -> None:
    """Print the instructions of a bundle or a policy, one a line."""
    from edgewam.recipes.prompts import known_prompts

    if known := known_prompts(place):
        print("\n".join(known))
    else:
        say(f'{place} knows no instruction. Add one with: edgewam prompt add {place} "..." --text ENCODER')


@app.command()
def add(
    place: Annotated[Path, typer.Argument(help="Directory of a bundle, a policy, or cached embeddings.")],
    instructions: Annotated[list[str], typer.Argument(help="What the robot is told to do; several add several.")],
    text: Annotated[
        str | None,
        typer.Option(help="Where embeddings come from: a text_encoder artifact, or cached ones. The encoder small needs none."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Embed an instruction with the policy's text encoder and store it."""
    from edgewam.recipes.prompts import POLICIES, add_prompts

    kind = add_prompts(place, instructions, text, device)
    say(f"{place} now knows {', '.join(map(repr, instructions))}.")
    if kind in POLICIES:
        say(
            f"What was made from this {kind} before does not: shrink would make it again. A finished bundle takes prompts itself."
        )


@app.command()
def cache(
    source: Annotated[Path, typer.Argument(help="Dataset directory, or a text file with one instruction a line.")],
    out: Annotated[Path, typer.Argument(help="Directory to fill with one file an instruction, as upstream reads and writes.")],
    text: Annotated[Path, typer.Option(help="text_encoder artifact that embeds them.")],
    text_len: Annotated[int, typer.Option(help="Rows of an embedding, padding included.", min=1)] = 128,
    device: Device = "cpu",
) -> None:
    """Embed every instruction of a dataset; what is there already is kept, so the same command goes on."""
    from edgewam.recipes.prompts import fill_cache

    with progress("embedding") as update:
        filled = fill_cache(source, out, text, text_len, device, update)
    say(f"{out}: {filled.written} embeddings written, {filled.already_there} were there.")
