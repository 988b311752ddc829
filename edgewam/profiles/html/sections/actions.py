"""The action error over the chunk: how far row by row the engine is from its reference, beside the reference's own spread."""

from __future__ import annotations

from edgewam.profiles.html.charts import lines
from edgewam.profiles.html.values import Values, absent, escape, section, table

NAME, TITLE = "actions", "How far off are the actions?"
_CLASSES = ("engine", "second")


def render(v: Values) -> str:
    """Median and p99 per row of the chunk for every reference."""
    part = v["parity"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    series: dict[str, list[tuple[float, float]]] = {}
    keys = []
    for kind, one in zip(_CLASSES, part["references"], strict=False):
        series[kind] = [(row["index"] + 1, row["median"]) for row in one["chunk"]]
        series[f"{kind}-tail"] = [(row["index"] + 1, row["p99"]) for row in one["chunk"]]
        keys.append(f'<span><i class="wire {kind}"></i>against {escape(one["reference"])}: median, dotted p99</span>')
    series["spread"] = [(row["index"] + 1, row["spread"]) for row in part["references"][0]["chunk"]]
    keys.append('<span><i class="wire dash"></i>what two noises differ by (median)</span>')
    chart = lines(series, "row of the chunk (control ticks)", "error in units of the action's std", "Action error over the chunk")
    rows = []
    for j, row in enumerate(part["references"][0]["chunk"]):
        cells = [f"{row['index'] + 1}"]
        for i in range(min(len(_CLASSES), len(part["references"]))):
            cells += [v.number(f"parity.references.{i}.chunk.{j}.{key}", "tiny") for key in ("median", "p99")]
        rows.append([*cells, v.number(f"parity.references.0.chunk.{j}.spread", "tiny")])
    names = [one["reference"] for one in part["references"][: len(_CLASSES)]]
    head = ["row", *[text for name in names for text in (f"{name}: median", "p99")], "spread"]
    more = f"<details><summary>The numbers</summary>{table(head, rows)}</details>"
    lead = "Absolute difference at equal noise over frames, noises and joints, for each row of the action chunk."
    return section(NAME, TITLE, lead, f'<div class="key">{"".join(keys)}</div><figure class="chart">{chart}</figure>{more}')
