"""A bridge in a process of its own, so that even its supervisor can be killed: `python -m tests.robot_bridge.faults.parent`.

Reads one JSON line (arguments of `run`), prints the children's process ids and at the end the report or the error.  Every log row
that the supervisor has drained is in the file `rows` at once.
"""

from __future__ import annotations

import json
import sys

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.run import RunSettings, run
from edgewam.robot_bridge.wires import Log


def keep_rows(path: str) -> None:
    """Append to `path` whatever this process reads from the log from now on."""
    read, file = Log.read, open(path, "ab", buffering=0)  # noqa: SIM115  until the process ends

    def keeping(log, first, end):
        rows, lost = read(log, first, end)
        file.write(rows.tobytes())
        return rows, lost

    Log.read = keeping


def main() -> int:
    """Run the bridge."""
    request = json.loads(sys.stdin.readline())
    keep_rows(request.pop("rows"))
    settings = RunSettings(**request.pop("settings"))
    try:
        report = run(settings=settings, on_start=lambda pids: print(json.dumps(pids), flush=True), **request)
    except EdgewamError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps(report.to_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
