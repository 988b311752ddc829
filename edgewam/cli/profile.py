"""`edgewam profile`: where the time of a bundle goes, stage by stage, under its timing contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import or_shipped

if TYPE_CHECKING:
    from edgewam.runtime.bundle import Bundle

_BLOCK = 6  # calls of one side before the other's turn: a neighbour's burst on the machine must hit both


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    n: Annotated[int, typer.Option("-n", help="Timed runs of each figure.", min=1)] = 200,
    warmup: Annotated[int, typer.Option(help="Untimed runs before.", min=0)] = 20,
    threads: Annotated[int, typer.Option(help="Compute threads.", min=1)] = 2,
    against: Annotated[
        Path | None,
        typer.Option(help="Another bundle of the same policy, timed in turns with it: float32 beside INT8."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time every program and stage of a bundle, and L_chunk, L_prefill and L_compose as the policy uses them."""
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.measure import profile_bundle

    opened = Bundle.open(or_shipped(bundle, "bundle"), threads=threads)
    if against is not None:
        emit(_in_turns(opened, Bundle.open(against, threads=threads), n, warmup), as_json)
        return
    profiles = profile_bundle(opened, n=n, warmup=warmup)
    for result in profiles.values():
        say(result.text() + "\n")
    emit({name: result.to_json() for name, result in profiles.items()}, as_json)


def _in_turns(bundle: Bundle, against: Bundle, n: int, warmup: int) -> dict[str, Any]:
    """Figures and stages of both, with ratios, as plain JSON; the tables go to stderr."""
    from edgewam.core.errors import EdgewamError, require
    from edgewam.recipes.report_latency import measure_latency

    ours, theirs = ({name: p.inputs for name, p in b.pipeline.programs.programs.items()} for b in (bundle, against))
    if ours != theirs:
        raise EdgewamError(f"'{against.path}' has other programs than '{bundle.path}'. Give a bundle of the same policy.")
    require("torch", extra="train")  # for the floor, which counts calls as compile does
    found = measure_latency({"engine": bundle, "eager": against}, n, max(5, n // _BLOCK), warmup)  # its names of the sides
    timed = list(found["figures"].items())
    for program in found["programs"]:
        timed += [(f"{program['name']} {row['stage']}", row) for row in program["rows"]]
    measured = [
        {"what": name, "bundle": row["engine"], "against": row["eager"], "times_as_fast": row["speedup"]} for name, row in timed
    ]
    say(found["contract_text"])
    header = ["one call", "p50 ms", "p99", "other p50", "p99", "faster"]
    rows = [
        [row["what"], *(row[side][key] for side in ("bundle", "against") for key in ("p50_ms", "p99_ms")), row["times_as_fast"]]
        for row in measured
    ]
    table(f"{bundle.path} and {against.path} in turns", header, rows)
    return {"measured": measured, "against": against.digest, "contract": found["contract"]}
