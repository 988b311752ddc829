"""`edgewam replay`: what a flight recording holds, and whether a bundle computes the recorded actions again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import FACTORY

if TYPE_CHECKING:
    from edgewam.robot_bridge.recorder.reader import Recording
    from edgewam.robot_bridge.recorder.replay import Replay
    from edgewam.robot_bridge.recorder.summary import Summary

OPTIONS = {"threads": int, "spinning": bool}  # of a recorded policy that change how its bundle computes
MAX_THREADS = 256  # a recording may come from somebody else


def command(
    recording: Annotated[Path, typer.Argument(help="The .mcap file of `edgewam run --record`; its further parts are found.")],
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle to compute the recorded chunks again with; without it the recording is counted.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest deviation, rad; by default 0 where the recording was made, else 0.001.", min=0.0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Count a recording, or compute its actions again and name the first one that differs."""
    from edgewam.robot_bridge.recorder.messages import spelled
    from edgewam.robot_bridge.recorder.reader import Recording
    from edgewam.robot_bridge.recorder.summary import summarize

    record = Recording(recording)
    if bundle is None:
        summary = summarize(record)
        show(summary, record)
        emit(spelled({"run": record.run, **summary.to_json()}), as_json)
        return
    _replay(record, bundle, tolerance, as_json)


def _replay(record: Recording, path: Path, wanted: float | None, as_json: bool) -> None:
    from edgewam.core.artifacts import hardware, read_manifest, versions
    from edgewam.core.errors import EdgewamError
    from edgewam.robot_bridge.policy import open_policy
    from edgewam.robot_bridge.recorder.messages import spelled
    from edgewam.robot_bridge.recorder.replay import EXACT, OTHER_MACHINE, replay

    digest = read_manifest(path, kind="bundle").digest
    recorded_digest = str(record.run.get("bundle"))
    is_same_bundle = digest == recorded_digest
    is_same_place = record.run["versions"] == versions() and record.run["hardware"].get("cpu") == hardware()["cpu"]
    tolerance = wanted if wanted is not None else EXACT if is_same_bundle and is_same_place else OTHER_MACHINE
    if not is_same_bundle:
        say(f"Another bundle ({digest[:12]}) than the recorded one ({recorded_digest[:12]}): differences are expected.")
    if not is_same_place:
        say(f"Recorded on another machine or with other versions: compared within {tolerance:g} rad.")
    recorded = record.run["config"]["policy_args"]
    if isinstance(recorded.get("threads"), int) and not 0 < recorded["threads"] <= MAX_THREADS:
        raise EdgewamError(f"The recording says {recorded['threads']} compute threads. It is damaged or not edgewam's.")
    options = {name: kind(recorded[name]) for name, kind in OPTIONS.items() if isinstance(recorded.get(name), kind)}
    result = replay(record, open_policy(FACTORY, {"bundle": str(path), **options}), tolerance)
    say(verdict(result, record))
    data: dict[str, Any] = {"bundle": digest, "is_same_bundle": is_same_bundle, "is_same_machine": is_same_place}
    emit(spelled({**data, "torn": [part.name for part in record.torn], **result.to_json()}), as_json)
    if not result.compared:
        raise EdgewamError("No chunk of this recording could be compared. Count it: edgewam replay RECORDING.")
    if result.first is not None and (is_same_bundle or wanted is not None):
        raise typer.Exit(1)


def verdict(result: Replay, record: Recording) -> str:
    """The outcome in words."""
    lines = [
        f"{result.compared} of {result.chunks} chunks compared, {result.exact} equal bit for bit, {result.refreshes} refreshes; "
        f"largest deviation {result.max_deviation:.3g} (tolerance {result.tolerance:g})."
    ]
    if result.no_frame or result.malformed:
        lines.append(f"Not compared: {result.no_frame} whose frame was lost, {result.malformed} that were no valid chunks.")
    if result.broken_from is not None:
        lines.append(
            f"Not comparable from tick {result.broken_from} to the end of its episode: the recording lost what the policy's "
            f"memory is made of ({result.broken} chunks in all)."
        )
    if record.torn:
        lines.append(f"The recorder was killed: {', '.join(path.name for path in record.torn)} ends torn.")
    if (first := result.first) is None:
        lines.append("No difference.")
    elif first.recorded is None:
        lines.append(f"FIRST DIFFERENCE at tick {first.tick}, chunk {first.chunk_id}: {first.reason}")
    else:
        names = record.run["config"].get("joint_names")
        joint = names[first.joint] if names else f"joint {first.joint}"
        lines.append(
            f"FIRST DIFFERENCE at tick {first.tick}, chunk {first.chunk_id}, row {first.row}, {joint}: "
            f"recorded {first.recorded:.9g}, computed {first.replayed:.9g}."
        )
    return "\n".join(lines)


def show(summary: Summary, record: Recording) -> None:
    """The counts as tables on stderr."""
    from edgewam.cli.run import show as show_run

    config = record.run["config"]
    show_run(summary.report)
    say("Episodes and successes are in the report of the run itself; a recording does not know them.")
    rows = [[name, count, summary.lost[name]] for name, count in summary.found.items()]
    title = f"'{config['prompt']}', bundle {str(record.run.get('bundle'))[:12]}"
    table(f"{title}, {summary.bytes / 1e6:.1f} MB in {len(summary.parts)} part(s)", ["stream", "recorded", "lost"], rows)
    if summary.torn:
        say(f"Torn, so that up to a second before its end is missing: {', '.join(summary.torn)}.")
    if summary.fault:
        say(f"Recording ended before the run did: {summary.fault}.")
