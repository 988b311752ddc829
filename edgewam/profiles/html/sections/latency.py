"""Latency: every stage as eager PyTorch, as the bundle's engine, and the least it could take."""

from __future__ import annotations

from typing import Any

from edgewam.profiles.html.charts import bars, chart_row
from edgewam.profiles.html.values import Values, absent, escape, section, table

NAME, TITLE = "latency", "Where the time goes"
LEAST_SHOWN = 0.01  # of the largest bar; smaller stages stand in the table alone
_TEXT = {"act": "every chunk", "plan": "every planner refresh", "prompt": "once per instruction"}


def render(v: Values) -> str:
    """Bars per stage for the program of a chunk, then one table per program, then the conditions."""
    part = v["latency"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    has_eager = any(row["eager"] for program in part["programs"] for row in program["rows"])
    has_floor = any(row["floor_ms"] is not None for program in part["programs"] for row in program["rows"])
    kinds = [("eager", "eager PyTorch", has_eager), ("engine", "engine of this bundle", True), ("floor", "floor", has_floor)]
    keys = "".join(f'<span><i class="{kind}"></i>{text}</span>' for kind, text, shown in kinds if shown)
    body = [f'<div class="key">{keys}</div>']
    body += [_program(v, i, program) for i, program in enumerate(part["programs"])]
    body.append(_figures(v))
    body.append(f'<p class="soft">{escape(part["floor"])}.</p>' if part["floor"] else "")
    if part.get("eager_reason"):
        body.append(f'<p class="absent">{escape(part["eager_reason"])}</p>')
    body.append(f'<p class="soft"><code>{escape(part["contract_text"])}</code></p>')
    lead = "Medians in milliseconds, both sides timed in turns in one process; a bar counts all calls of its stage."
    return section(NAME, TITLE, lead, "".join(body))


def _program(v: Values, index: int, program: dict[str, Any]) -> str:
    at = f"latency.programs.{index}"
    sums = [
        row["calls"] * row[side]["p50_ms"] for row in program["rows"] for side in ("engine", "eager") if row[side] is not None
    ]
    largest, rows, lines = max(sums, default=1.0), [], []
    order = sorted(
        range(len(program["rows"])), key=lambda i: -program["rows"][i]["calls"] * program["rows"][i]["engine"]["p50_ms"]
    )
    for i in order:
        row, here = program["rows"][i], f"{at}.rows.{i}"
        calls = row["calls"]
        values = [(side, calls * row[side]["p50_ms"]) for side in ("eager", "engine") if row[side] is not None]
        values += [("floor", calls * row["floor_ms"])] if row["floor_ms"] is not None else []
        times = f' <span class="soft">&times; {calls}</span>' if calls > 1 else ""
        name = escape(row["stage"]) + times
        if largest and max(value for _, value in values) > LEAST_SHOWN * largest:
            spoken = ", ".join(f"{kind} {value:.2f} ms" for kind, value in values)
            drawn = bars(values, largest, f"{row['stage']}: {spoken}")
            each = " each" if calls > 1 else ""
            figure = v.number(f"{here}.engine.p50_ms", "ms")
            rows.append(chart_row(name, drawn, f"{figure} ms{each}"))
        lines.append([escape(row["stage"]), v.number(f"{here}.calls", "count"), *_cells(v, here, row)])
    lines.append(["total", "", *_cells(v, at, program)])
    head = ["stage", "calls", "eager p50", "engine p50", "engine p99", "eager / engine", "floor", "engine / floor"]
    text = _TEXT.get(program["name"], "")
    when = f' <span class="soft">({text})</span>' if text else ""
    title = f"<h3>{escape(program['name'])}{when}</h3>"
    chart = f'<div class="rows chart">{"".join(rows)}</div>'
    return title + chart + table(head, lines).replace("<tr><td>total", '<tr class="total"><td>total')


def _cells(v: Values, at: str, row: dict[str, Any]) -> list[str]:
    eager, floor = row["eager"], row["floor_ms"]
    return [
        v.number(f"{at}.eager.p50_ms", "ms") if eager else "-",
        v.number(f"{at}.engine.p50_ms", "ms"),
        v.number(f"{at}.engine.p99_ms", "ms"),
        v.number(f"{at}.speedup", "times") if eager else "-",
        v.number(f"{at}.floor_ms", "ms") if floor is not None else "-",
        v.number(f"{at}.above_floor", "times") if floor else "-",
    ]


def _figures(v: Values) -> str:
    figures = v["latency.figures"]
    rows = []
    for name in figures:
        at = f"latency.figures.{name}"
        cells = [v.number(f"{at}.engine.{key}", "ms") for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
        eager = (
            [v.number(f"{at}.eager.p50_ms", "ms"), v.number(f"{at}.speedup", "times")] if figures[name]["eager"] else ["-", "-"]
        )
        rows.append([escape(name), *cells, *eager])
    head = ["as the policy uses it", "p50 ms", "p95", "p99", "max", "eager p50", "eager / engine"]
    return table(head, rows) if rows else ""
