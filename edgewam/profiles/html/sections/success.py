"""Success in closed loop with 95 % intervals: one row per policy and task."""

from __future__ import annotations

from edgewam.profiles.html.charts import chart_row, interval
from edgewam.profiles.html.values import Values, absent, escape, section, table

_COMPARED = (("n", "count"), ("difference", "percent"), ("lower_bound", "percent"), ("margin", "percent"))
NAME, TITLE = "success", "Does it succeed?"


def render(v: Values) -> str:
    """Intervals drawn on one scale, then the table with the source of every row."""
    part = v["success"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    drawn, rows = [], []
    for i, row in enumerate(part["rows"]):
        at, rate = f"success.rows.{i}", row["strict"]
        label = f"{row['policy']}, {row['task']}: {rate['rate']:.3f}, {rate['wilson']['low']:.3f} to {rate['wilson']['high']:.3f}"
        name = f'{escape(row["policy"])}<br><span class="soft">{escape(row["task"])}</span>'
        picture = interval(rate["wilson"]["low"], rate["rate"], rate["wilson"]["high"], label)
        drawn.append(chart_row(name, picture, v.number(f"{at}.strict.rate", "percent")))
        rows.append([
            escape(row["policy"]), escape(row["task"]), escape(row["source"]),
            f"{v.number(f'{at}.strict.successes', 'count')}/{v.number(f'{at}.strict.n', 'count')}",
            f"{v.number(f'{at}.strict.wilson.low', 'percent')} to {v.number(f'{at}.strict.wilson.high', 'percent')}",
            v.number(f"{at}.success.rate", "percent"), v.number(f"{at}.median_strict_time_s", "seconds"),
            v.number(f"{at}.seam_jerk", "small"), v.number(f"{at}.inner_jerk", "small"),
        ])  # fmt: skip
    head = ["policy", "task", "from", "strict", "95 % interval", "success", "median time", "seam jerk", "inner jerk"]
    lead = (
        "Lockstep episodes: the simulator waits for the policy, the seed fixes scene, noise and light. Dots are rates, bars "
        "their 95 % intervals (Wilson), marks stand at 0, 25, 50, 75 and 100 %. Jerk: third difference of "
        "the commands in units of the velocity limit per tick."
    )
    body = f'<div class="rows wide chart">{"".join(drawn)}</div>{table(head, rows, left=3)}'
    return section(NAME, TITLE, lead, body + _comparisons(v))


def _comparisons(v: Values) -> str:
    """Paired comparisons on the same seeds, where there are any."""
    rows = []
    for i, row in enumerate(v["success.comparisons"]):
        at = f"success.comparisons.{i}"
        verdict = '<span class="pass">non-inferior</span>' if row["is_non_inferior"] else '<span class="fail">not shown</span>'
        numbers = [v.number(f"{at}.{key}", form) for key, form in _COMPARED]
        rows.append([escape(row["name"]), verdict, *numbers])
    head = ["paired seeds", "verdict", "n", "difference", "lower bound (one-sided 95 %)", "margin"]
    return f"<h3>On the same seeds</h3>{table(head, rows, left=2)}" if rows else ""
