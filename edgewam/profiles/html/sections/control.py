"""The control loop in real time: rates, missed ticks, and histograms of lateness and of the way from image to command."""

from __future__ import annotations

from edgewam.profiles.html.charts import histogram
from edgewam.profiles.html.values import Values, absent, section, table

NAME, TITLE = "control", "Does it hold the clock?"
_HISTOGRAMS = {
    "lateness_ms": ("Lateness of a command", "milliseconds after the deadline"),
    "observation_to_command_ms": ("From the image to the first command", "milliseconds from the capture of the image"),
}


def render(v: Values) -> str:
    """Counters, quantiles and histograms of one real-time run."""
    part = v["control"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    counters = [
        ("control rate", "control_hz", "hz"), ("fresh chunks applied", "chunk_hz", "hz"), ("ticks", "ticks", "count"),
        ("missed", "missed", "count"), ("late by more than 10 % of a period", "late", "count"), ("held", "held", "count"),
        ("limit violations", "violations", "count"), ("episodes", "num_episodes", "count"),
        ("strict successes", "num_strict_successes", "count"),
    ]  # fmt: skip
    body = table(["counter", "value"], [[label, v.number(f"control.{key}", form)] for label, key, form in counters])
    rows = []
    for key, label in (
        ("lateness_ms", "lateness of a command"), ("engine_ms", "engine, per answer"),
        ("observation_to_command_ms", "image to first command"),
    ):  # fmt: skip
        rows.append([label, *[v.number(f"control.{key}.{q}", "ms") for q in ("p50", "p99", "max")]])
    body += table(["milliseconds", "p50", "p99", "max"], rows)
    for key, (title, label) in _HISTOGRAMS.items():
        if key in part["histograms"]:
            drawn = part["histograms"][key]
            chart = histogram(drawn["edges_ms"], drawn["counts"], label, title)
            body += f'<h3>{title}</h3><figure class="chart">{chart}</figure>'
    if not part["histograms"]:
        body += '<p class="absent">This record was made before runs kept histograms; run it again for them.</p>'
    lead = f"{v.number('control.seconds', 'plain')} s in real time: {v.text('control.source')}."
    return section(NAME, TITLE, lead, body)
