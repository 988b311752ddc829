"""What a soak was like and whether it passes: stretches of its log, the memory of its processes, and the gates of both.

Pure functions of log rows, the bridge's own report and samples of memory; `benchmarks.soak` makes the run.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.bridge_figures import Rows, episodes, stretch
from benchmarks.results import now_utc
from edgewam.core.artifacts import versions
from edgewam.profiles.report import table
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.robot import RobotSpec

THIRDS = ("first", "middle", "last")
MAX_GROWTH_PERCENT = 2.0
MAX_IO_MB = 100.0
MAX_HOLD_PERCENT = 1.0
MAX_LATENESS_MS = {"SCHED_FIFO": 2.0, "SCHED_OTHER": 20.0}
MAX_MISSED_PERCENT = {50.0: 0.5, 100.0: 1.0}
# memory is compared with what it was when every cache had been filled once
WARM_UP_PART, WARM_UP_S = 0.2, 300.0  # the recorder fills the index of its first part for five minutes
WINDOW_S = 60.0  # medians of a minute: single looks fall into moments when the allocator has just given half a MB back
Memory = dict[str, list[tuple[float, float, float]]]  # by role: (s, resident MB, its own part of them)


def growth(memory: Memory, seconds: float) -> dict[str, dict[str, Any]]:
    """Of each process: resident MB in the minute after the warm-up and in the last one, the growth between, all samples."""
    warm_s = min(WARM_UP_S, WARM_UP_PART * seconds)
    found = {}
    for role, looks in memory.items():
        after = [look for look in looks if look[0] >= warm_s] or looks
        if not after:
            continue
        begin_s, end_s = after[0][0], after[-1][0]
        window_s = min(WINDOW_S, (end_s - begin_s) / 4)
        first = median(look[1] for look in after if look[0] <= begin_s + window_s)
        last = median(look[1] for look in after if look[0] >= end_s - window_s)
        found[role] = {
            "after_warm_up_mb": round(first, 2),
            "end_mb": round(last, 2),
            "anonymous_end_mb": round(after[-1][2], 2),
            "growth_percent": round(100 * (last - first) / first, 3),
            "samples": [[round(t, 1), round(rss, 2)] for t, rss, _ in looks],
        }
    return found


def successes(rows: Rows, outcomes: list[dict[str, Any]], begin: int, end: int) -> dict[str, int]:
    """Episodes that ended in control ticks [begin, end), and how many of them with strict success."""
    ends = {int(part["episode"][0]): int(part["tick"][-1]) for part in episodes(rows)}
    ended = [outcome for number, outcome in enumerate(outcomes) if begin <= ends.get(number, -1) < end]
    return {"episodes": len(ended), "strict_successes": sum(bool(outcome["strict_success"]) for outcome in ended)}


def gates(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the record must fulfil: name, value, limit, passed."""
    thirds, hz = record["thirds"], record["conditions"]["control_hz"]
    burnt = record["conditions"]["burners"] > 0
    calm = [third for name, third in thirds.items() if not (burnt and name == "middle")]
    scheduler = "SCHED_FIFO" if record["real_time"].get("io", {}).get("scheduler", "").startswith("SCHED_FIFO") else "SCHED_OTHER"
    found = [
        ("missed ticks, %", record["whole"]["missed_percent"], MAX_MISSED_PERCENT.get(hz, 1.0)),
        ("HOLD outside of the burnt third, %", max(third["hold_percent"] for third in calm), MAX_HOLD_PERCENT),
        (f"p99 lateness with {scheduler}, ms", record["whole"]["lateness"]["p99_ms"] or 0.0, MAX_LATENESS_MS[scheduler]),
        (
            f"p99 lateness in the worst third with {scheduler}, ms",
            max(third["lateness"]["p99_ms"] or 0.0 for third in thirds.values()),
            MAX_LATENESS_MS[scheduler],
        ),
        ("resident memory of io, MB", record["memory"].get("io", {}).get("end_mb", 0.0), MAX_IO_MB),
        ("limit violations", record["whole"]["violations"], 0),
        *((f"memory growth of {role}, %", used["growth_percent"], MAX_GROWTH_PERCENT) for role, used in record["memory"].items()),
    ]
    return [{"gate": name, "value": value, "limit": limit, "passed": value <= limit} for name, value, limit in found]


def judge(
    rows: Rows, report: dict[str, Any] | None, memory: Memory, spec: RobotSpec, conditions: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run, gates included."""
    hz = conditions["control_hz"]
    total = round(conditions["minutes"] * 60 * hz)
    last = int(rows["tick"][-1]) + 1 if len(rows) else 0
    is_complete = report is not None and bool(report["is_complete"])
    outcomes = report["episodes"] if report else []
    lasted = total if is_complete else last
    bounds = [round(total * k / 3) for k in range(4)]
    spans = {name: (bounds[k], min(bounds[k + 1], lasted)) for k, name in enumerate(THIRDS) if bounds[k] < lasted}
    record = {
        "when_utc": now_utc(),
        "is_complete": is_complete,
        "faults": report["faults"] if report else ["interrupted"],
        "final_mode": Mode(int(rows["mode"][-1])).name if len(rows) else Mode.INIT.name,
        "conditions": conditions,
        "versions": versions(),
        "real_time": report["real_time"] if report else {},
        "whole": stretch(rows, 0, lasted, spec, hz) | successes(rows, outcomes, 0, total),
        "thirds": {name: stretch(rows, *span, spec, hz) | successes(rows, outcomes, *span) for name, span in spans.items()},
        "memory": growth(memory, lasted / hz),
        "report": {k: v for k, v in (report or {}).items() if k not in ("histograms", "episodes")},
    }
    return record | {"gates": gates(record)}


def text(record: dict[str, Any]) -> str:
    """Tables of the thirds, of memory and of the gates."""
    parts = {**record["thirds"], "whole": record["whole"]}
    rows = [
        [
            "part",
            "missed %",
            "HOLD %",
            "late p50",
            "p99",
            "max ms",
            "chunks/s",
            "obs to cmd p50",
            "p99 ms",
            "violations",
            "strict",
        ]
    ]
    for name, part in parts.items():
        late, age = part["lateness"], part["observation_to_command"]
        rows.append(
            [
                name, part["missed_percent"], part["hold_percent"], late["p50_ms"], late["p99_ms"], late["max_ms"],
                part["chunk_hz"], age["p50_ms"], age["p99_ms"], part["violations"],
                f"{part['strict_successes']}/{part['episodes']}",
            ]
        )  # fmt: skip
    memory = [["process", "MB after warm-up", "at the end", "growth %"]]
    memory += [[r, m["after_warm_up_mb"], m["end_mb"], m["growth_percent"]] for r, m in record["memory"].items()]
    verdicts = [["gate", "value", "limit", "verdict"]]
    verdicts += [[g["gate"], g["value"], g["limit"], "passed" if g["passed"] else "MISSED"] for g in record["gates"]]
    return "\n\n".join(table([[str(cell) for cell in row] for row in part]) for part in (rows, memory, verdicts))
