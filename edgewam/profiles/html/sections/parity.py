"""Parity: gates 1 and 2 against each reference, and the first stage that diverges."""

from __future__ import annotations

from edgewam.profiles.html.values import Values, absent, escape, section, table

NAME, TITLE = "parity", "Does it still compute the same actions?"


def render(v: Values) -> str:
    """A row per gate and reference, then every stage's output."""
    part = v["parity"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    rows = []
    for i, one in enumerate(part["references"]):
        at, name = f"parity.references.{i}", escape(one["reference"])
        if one["gate1"]:
            rows.append(["1, every stage", name, _verdict(one["gate1"]["passed"]), v.number(f"{at}.gate1.worst", "tiny"),
                         v.number(f"{at}.gate1.tolerance", "tiny"), "-", "-"])  # fmt: skip
        if one["gate2"]:
            form = "tiny" if one["gate2"]["median"] < 1e-3 else "small"
            rows.append(["2, excess error ratio", name, _verdict(one["gate2"]["passed"]), v.number(f"{at}.gate2.median", form),
                         v.number(f"{at}.gate2.limits.median", "plain"), v.number(f"{at}.gate2.p99", form),
                         v.number(f"{at}.gate2.limits.p99", "plain")])  # fmt: skip
    body = table(["gate", "against", "verdict", "worst or median", "limit", "p99", "limit"], rows, left=3)
    for i, one in enumerate(part["references"]):
        if one["gate1"]:
            body += _stages(v, i)
    lead = (
        f"Gate 1 replays every stage on the values the reference saw; gate 2 divides the action error at equal noise by the "
        f"reference's own spread over noise. {v.number('parity.num_frames', 'count')} frames: {v.text('parity.frames_from')}."
    )
    return section(NAME, TITLE, lead, body)


def _verdict(passed: bool) -> str:
    return '<span class="pass">passed</span>' if passed else '<span class="fail">FAILED</span>'


def _stages(v: Values, index: int) -> str:
    rows = []
    for j, row in enumerate(v[f"parity.references.{index}.gate1.rows"]):
        at = f"parity.references.{index}.gate1.rows.{j}"
        numbers = [
            v.number(f"{at}.{key}", form) for key, form in (("relative", "tiny"), ("max_abs", "tiny"), ("num_bad", "count"))
        ]
        rows.append([escape(row["stage"]), escape(row["output"]), *numbers])
    head = ["stage", "output", "largest error / maximum", "largest error", "not finite"]
    return f"<h3>Gate 1, stage by stage</h3>{table(head, rows, left=2)}"
