"""What the README says of the bridge: rows of its table from the results of soak, ages, real-time success, door and schedules.

Pure functions of one result each; docs/reliability.md has the same results in full (`benchmarks.reliability`).
"""

from __future__ import annotations

from typing import Any

Rows = list[tuple[str, str]]
SMALL_VIEWS = "3 x 128x160, back to back"


def soak_rows(data: dict[str, Any]) -> Rows:
    """One run of minutes: clock, chunks, limits, memory."""
    conditions, whole = data["conditions"], data["whole"]
    burners = conditions["burners"]
    scheduler = data["real_time"].get("io", {}).get("scheduler", "unknown").split()[0]
    calm = [third["hold_percent"] for name, third in data["thirds"].items() if not (burners and name == "middle")]
    growth = max(used["growth_percent"] for used in data["memory"].values())
    disturbed = f", {burners} busy loops in the middle third" if burners else ""
    if conditions["recorder"]:
        disturbed += ", flight recorder on"
    ended = "" if data["is_complete"] else " (NOT complete)"
    return [
        (
            f"{conditions['minutes']:g} min in real time at {conditions['control_hz']:g} Hz, {scheduler}{disturbed}{ended}: "
            "missed, HOLD in the quiet thirds, p99 lateness, limit violations, largest growth of a process",
            f"{whole['missed_percent']:.2f} %, {max(calm):.2f} %, {whole['lateness']['p99_ms']:.2f} ms, {whole['violations']}, "
            f"{growth:+.1f} %",
        )
    ]


def age_rows(data: dict[str, Any]) -> Rows:
    """The whole way from light to motion."""
    age = data["ages"]["capture to robot"]
    return [("capture of an image to the first motion from it", f"{age['p50_ms']:.1f} ms p50, {age['p99_ms']:.1f} ms p99")]


def real_time_rows(data: dict[str, Any]) -> Rows:
    """What real time costs in success."""
    pair, first = data["comparison"], data["conditions"]["first_seed"]
    verdict = "within" if pair["is_non_inferior"] else "NOT shown to be within"
    return [
        (
            f"{data['task']}, strict success, seeds {first}-{first + pair['n'] - 1}: in real time; in lockstep at the measured "
            f"{data['latency_ticks']} ticks",
            f"{data['real_time']['strict']['successes']}/{pair['n']}; {data['lockstep']['strict']['successes']}/{pair['n']} "
            f"(bound {100 * pair['lower_bound']:+.1f} points: {verdict} {100 * pair['margin']:.0f})",
        )
    ]


def door_rows(data: dict[str, Any]) -> Rows:
    """The openpi door, without a policy."""
    trip = data["sections"][SMALL_VIEWS]["timings"]["round_trip"]
    return [
        (
            "door openpi, unmodified client, three 128x160 images, constant policy: round trip",
            f"{trip['p50_ms']:.2f} ms p50, {trip['p99_ms']:.2f} ms p99",
        )
    ]


def schedule_rows(data: dict[str, Any]) -> Rows:
    """Jerk at the seams of chunks and success, by schedule."""
    contract = data["contract"]
    first, count = contract["seeds"]
    latency = contract["settings"]["latency_ticks"]
    where = f"{contract['task']}, seeds {first}-{first + count - 1}, {latency} ticks late"
    return [
        (
            f"{where}: jerk at seams; within chunks; strict success: {name}",
            f"{cell['seam_jerk']:.2f}; {cell['inner_jerk']:.2f}; {cell['strict']['successes']}/{cell['strict']['n']}",
        )
        for name, cell in data["cells"].items()
    ]
