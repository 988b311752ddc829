"""`edgewam profile`: where the time of a bundle goes, stage by stage, under its timing contract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import Json, emit, say
from edgewam.cli._shipped import or_shipped


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    n: Annotated[int, typer.Option("-n", help="Timed runs of each figure.", min=1)] = 200,
    warmup: Annotated[int, typer.Option(help="Untimed runs before.", min=0)] = 20,
    threads: Annotated[int, typer.Option(help="Compute threads.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Time every program and stage of a bundle, and L_chunk, L_prefill and L_compose as the policy uses them."""
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.measure import profile_bundle

    profiles = profile_bundle(Bundle.open(or_shipped(bundle, "bundle"), threads=threads), n=n, warmup=warmup)
    for result in profiles.values():
        say(result.text() + "\n")
    emit({name: result.to_json() for name, result in profiles.items()}, as_json)
