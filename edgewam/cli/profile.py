"""`edgewam profile`: where the time of a bundle goes, stage by stage, under its timing contract, and its floor on any device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import or_shipped

if TYPE_CHECKING:
    from edgewam.runtime.bundle import Bundle

_RUNS, _TRACED_RUNS = 200, 20
_WARMUP, _THREADS = 20, 2
_FLOORS: dict[str, Any] = {"rich_help_panel": "With --roofline", "show_default": False}
_BLOCK = 6  # calls of one side before the other's turn: a neighbour's burst on the machine must hit both


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", help="Timed runs of each figure; by default 200, 20 of a trace.", min=1, show_default=False),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help=f"Untimed runs before; by default {_WARMUP}.", min=0, show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help=f"Compute threads; by default {_THREADS}.", min=1, show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another bundle of the same policy, timed in turns with it: float32 beside INT8."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write some runs of every program, stage by stage, to this file: open it in ui.perfetto.dev."),
    ] = None,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Print the least time each stage can take, what was measured, and the ratio.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="Floors on this device, which need not be here (h200, thor, ...); without it on this machine.", **_FLOORS
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="bf16, fp16, fp32, fp8, int8, fp8_weights, int8_weights, int4_weights or nvfp4, other ones for single stages "
            "(fp8,image_encoder=fp8), or the plan.json of a quantised artifact; by default as the bundle is, and plain for full.",
            **_FLOORS,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Without a bundle: full (the 7.35B model, the default) or small (the shipped one).", **_FLOORS),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoise steps instead of the bundle's own.", min=1, **_FLOORS)] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="Fill the measured column from the output of `profile --json`, or from a record.", **_FLOORS),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time every program and stage of a bundle, and L_chunk, L_prefill and L_compose as the policy uses them.

    With --roofline: the least time that each stage can take on any device. With --trace: a file for Perfetto.
    """
    _one_job(roofline, trace, against, {"device": device, "plan": plan, "size": size, "steps": steps, "measured": measured})
    given = {"-n": n, "--warmup": warmup, "--threads": threads}
    warmup, threads = _WARMUP if warmup is None else warmup, threads or _THREADS
    if roofline:
        bundle = _sized(bundle, size)
        _nothing_ignored(given, device is None and measured is None, bundle is not None and plan is None and steps is None)
        _roofline(bundle, device, plan, steps, measured, (n or _RUNS, warmup, threads), as_json)
        return
    from edgewam.runtime.bundle import Bundle

    opened = Bundle.open(or_shipped(bundle, "bundle"), threads=threads)
    if trace is not None:
        from edgewam.recipes.roofline_trace import write_trace

        found = write_trace(opened, trace, n or _TRACED_RUNS, warmup)
        say(f"wrote {trace}: {found['runs']} runs of {', '.join(found['programs'])}, {found['events']} events")
        say("Open it in https://ui.perfetto.dev or chrome://tracing.")
        emit(found, as_json)
        return
    if against is not None:
        emit(_in_turns(opened, Bundle.open(against, threads=threads), n or _RUNS, warmup), as_json)
        return
    from edgewam.runtime.measure import profile_bundle

    profiles = profile_bundle(opened, n=n or _RUNS, warmup=warmup)
    for result in profiles.values():
        say(result.text() + "\n")
    emit({name: result.to_json() for name, result in profiles.items()}, as_json)


def _one_job(roofline: bool, trace: Path | None, against: Path | None, floors: Mapping[str, object]) -> None:
    """Refuse options that do not go together: one that is ignored would mislead."""
    from edgewam.core.errors import EdgewamError

    if roofline + (trace is not None) + (against is not None) > 1:
        raise EdgewamError("--roofline, --trace and --against are different jobs. Give one of them.")
    if not roofline and (given := [f"--{name}" for name, value in floors.items() if value is not None]):
        raise EdgewamError(f"{', '.join(given)} only {'means' if len(given) == 1 else 'mean'} something with --roofline. Add it.")


def _nothing_ignored(given: Mapping[str, object], here: bool, timed: bool) -> None:
    """Refuse options of timing where a floor needs none: `here` it reads this machine's rates, and times a bundle if `timed`."""
    from edgewam.core.errors import EdgewamError

    used = {"-n": here and timed, "--warmup": here and timed, "--threads": here}
    if ignored := [name for name, value in given.items() if value is not None and not used[name]]:
        raise EdgewamError(
            f"Nothing is timed for this floor, so {', '.join(ignored)} would do nothing. Leave that out; a bundle "
            "(or --size small) is timed here where none of --device, --plan, --steps and --measured is given."
        )


def _sized(bundle: Path | None, size: str | None) -> Path | None:
    """The bundle whose floors are asked for; None for the full size."""
    from edgewam.core.errors import EdgewamError

    if size not in (None, "full", "small"):
        raise EdgewamError(f"Unknown size '{size}'. Available: full, small.")
    if bundle is not None and size is not None:
        raise EdgewamError(f"'{bundle}' has its own size. Leave --size out.")
    return or_shipped(None, "bundle") if size == "small" else bundle


def _roofline(
    bundle: Path | None, device: str | None, plan: str | None, steps: int | None, measured: Path | None,
    timing: tuple[int, int, int], as_json: bool,
) -> None:  # fmt: skip
    from edgewam.profiles.device import load_device
    from edgewam.recipes import roofline, roofline_measured

    n, warmup, threads = timing
    model = roofline.model_of(bundle)
    if measured is not None:
        where = load_device(device or roofline_measured.device_of(measured))
        plan = plan or (None if bundle else where.plain_format)
        precision = model.precision if plan is None else None if plan.endswith(".json") else plan.split(",")[0]
        beside = roofline_measured.read_measured(measured, model, where, precision, steps)
    elif device is None and bundle is not None and plan is None and steps is None:
        where, beside = roofline_measured.measure_here(bundle, n, warmup, threads)
    else:
        where, beside = load_device(device) if device else roofline.device_here(threads), None
        plan = plan or (None if bundle else where.plain_format)
    report = roofline.floors(model, where, plan, steps, beside)
    say(report.text())
    emit(report.to_json(), as_json)


def _in_turns(bundle: Bundle, against: Bundle, n: int, warmup: int) -> dict[str, Any]:
    """Figures and stages of both, with ratios, as plain JSON; the tables go to stderr."""
    from edgewam.core.errors import EdgewamError
    from edgewam.recipes.report_latency import measure_latency

    ours, theirs = ({name: p.inputs for name, p in b.pipeline.programs.programs.items()} for b in (bundle, against))
    if ours != theirs:
        raise EdgewamError(f"'{against.path}' has other programs than '{bundle.path}'. Give a bundle of the same policy.")
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
