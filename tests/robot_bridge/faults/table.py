"""Plays the whole fault matrix and writes its table into docs/reliability.md.

    python3 -m tests.robot_bridge.faults.table [--only PART ...] [--render] [--check]

Results are kept in benchmarks/results/<device>/faults.json; --only plays the rows whose name contains a part and keeps the
others, --render only writes the table again, --check only compares it (exit status 1 when it differs).  Exit status 1 when a row
fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.marks import with_block
from benchmarks.results import RESULTS, ROOT, slug
from edgewam.core.artifacts import write_json
from edgewam.profiles.machine import read_machine
from tests.robot_bridge.faults import doors
from tests.robot_bridge.faults.matrix import MATRIX, Fault
from tests.robot_bridge.faults.play import in_real_time, in_simulated_time

DOC = ROOT / "docs" / "reliability.md"
NAME = "faults"
DEVICE = "amd-epyc"  # whose results the table shows


def play(fault: Fault) -> dict[str, Any]:
    """All levels of a row: what was seen, what is wrong."""
    found: dict[str, Any] = {}
    if fault.tick:
        seen, wrong = in_simulated_time(fault)
        found["simulated time"] = {**seen.to_json(), "wrong": wrong}
    if fault.run:
        with tempfile.TemporaryDirectory(prefix="edgewam_fault_") as folder:
            try:
                seen, wrong = in_real_time(fault, Path(folder))
                found["real processes"] = {**seen.to_json(), "wrong": wrong}
            except Exception:
                found["real processes"] = {"wrong": [traceback.format_exc(limit=-3)]}
    for door in doors.names() if fault.door else ():
        assert fault.door is not None
        try:
            found[f"door {door}"] = {"said": fault.door(door), "wrong": []}
        except Exception as error:
            found[f"door {door}"] = {"wrong": [f"{type(error).__name__}: {error}"]}
    return found


def expected(fault: Fault) -> str:
    """A row's expectation in words."""
    if fault.door:
        return "refused with a code or hung up on; the next client is served"
    outcome = " or ".join(fault.outcome)
    if fault.hold_within is None:
        hold = "no tick of HOLD"
    else:
        cause = f" ({' or '.join(fault.cause)})" if len(fault.cause) in (1, 2) else ""
        hold = f"HOLD within {fault.hold_within} ticks{cause}"
    counted = f", counts {', '.join(fault.counted)}" if fault.counted else ""
    return f"{hold}{counted}; {outcome}"


def shown(fault: Fault, seen: Mapping[str, Any]) -> str:
    """What was seen at one level, in a cell."""
    if seen["wrong"]:
        return f"**{'; '.join(seen['wrong'])}**"
    if "said" in seen:
        return str(seen["said"])
    parts = []
    if seen["hold_after"] is not None:
        hold = f"HOLD ({seen['cause']})" if seen["held"] else f"STOP ({seen['cause']})"
        parts.append(f"{hold} after {seen['hold_after']} ticks" + (f", for {seen['held']}" if seen["held"] else ""))
    parts += [f"{name} {seen['counted'].get(name, 0)}" for name in fault.counted]
    return "; ".join([*parts, str(seen["outcome"])])


def table_of(results: Mapping[str, Any]) -> str:
    """The table, one line per row of the matrix."""
    lines = ["| fault | injected | expected | seen in simulated time | seen with real processes |", "|---|---|---|---|---|"]
    at_doors = [fault for fault in MATRIX if fault.door]
    for fault in MATRIX:
        if fault.door:
            continue
        found = results.get(fault.name, {})  # empty: not played yet
        cells = [shown(fault, found[level]) if level in found else "" for level in ("simulated time", "real processes")]
        lines.append(f"| {fault.name} | {fault.injected} | {expected(fault)} | {' | '.join(cells)} |")
    names = sorted({level for fault in at_doors for level in results.get(fault.name, {})})
    lines += ["", f"| fault | injected | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for fault in at_doors:
        found = results.get(fault.name, {})
        cells = [shown(fault, found[name]) if name in found else "" for name in names]
        lines.append(f"| {fault.name} | {fault.injected} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args(argv)
    is_playing = not (a.render or a.check)
    path = RESULTS / (slug(read_machine().cpu) if is_playing else DEVICE) / f"{NAME}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if is_playing:
        for fault in MATRIX:
            if a.only and not any(part in fault.name for part in a.only):
                continue
            results[fault.name] = play(fault)
            for level, seen in results[fault.name].items():
                print(f"{'FAILED' if seen['wrong'] else 'ok':7}{fault.name} [{level}]: {shown(fault, seen)}", flush=True)
            write_json(path, {known.name: results[known.name] for known in MATRIX if known.name in results})
    text = DOC.read_text()
    new = with_block(text, NAME, table_of(results))
    if a.check:
        return int(new != text)
    DOC.write_text(new)
    return int(any(seen["wrong"] for levels in results.values() for seen in levels.values()))


if __name__ == "__main__":
    sys.exit(main())
