"""What a viewer needs of a trace: the required fields of the Trace Event Format, and events that do not overlap on a track."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

ROUNDING_US = 1e-3  # one nanosecond: times are stored in microseconds


def require_trace(data: dict[str, Any]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Check a whole file; returns its complete events by (pid, tid), each track named, in time and without overlap."""
    assert isinstance(data["traceEvents"], list) and data["displayTimeUnit"] in ("ms", "ns")
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named = set()
    for event in data["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"] and event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["args"] and event["name"] in ("process_name", "thread_name", "thread_sort_index")
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
            continue
        assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["cat"], str)
        tracks[event["pid"], event["tid"]].append(event)
    assert set(tracks) == named, "every track has a name"
    for events in tracks.values():
        for before, after in pairwise(events):
            assert before["ts"] + before["dur"] <= after["ts"] + ROUNDING_US, f"{before['name']} runs into {after['name']}"
    return dict(tracks)
