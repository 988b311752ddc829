"""The whole page: head, figures that matter, sections, and the data that every number came from as JSON inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgewam.profiles.html.sections import actions, commands, control, film, latency, parity, road, success
from edgewam.profiles.html.style import STYLE
from edgewam.profiles.html.values import Values, escape

SECTIONS = (film, road, latency, parity, actions, success, control, commands)


def page(data: Mapping[str, Any]) -> str:
    """One self-contained HTML document: no script, no font, no picture and no style from anywhere else.

    data: as `recipes/report.py` gathers it; plain JSON.  It stands in `<script type="application/json" id="data">`, without
    the film, whose bytes are in the picture itself.
    """
    v = Values(data)
    kept = {**data, "film": {key: value for key, value in data["film"].items() if key not in ("film", "still")}}
    # "</script" would end the block early and "<!--" open a comment, whatever string they stand in
    block = json.dumps(kept, allow_nan=False).replace("<", "\\u003c")
    title = f"{data['bundle']['name']}: {data['bundle']['family']} on {data['bundle']['backend']}"
    body = "".join(part.render(v) for part in SECTIONS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # else a browser asks the server for one
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{_head(v)}{body}{_foot(v)}</main>"
        f'<script type="application/json" id="data">{block}</script></body></html>\n'
    )


def _head(v: Values) -> str:
    bundle = v["bundle"]
    tiles = []
    figures = v["latency"].get("figures", {})
    if "L_chunk" in figures:
        tiles.append((v.number("latency.figures.L_chunk.engine.p50_ms", "ms") + " ms", "action chunk, median"))
        if figures["L_chunk"]["eager"]:
            tiles.append((v.number("latency.figures.L_chunk.speedup", "times"), "faster than eager PyTorch"))
    if (best := v["success"].get("headline")) is not None:
        at = f"success.rows.{best}"
        tiles.append((v.number(f"{at}.strict.rate", "percent"), f"strict success, {v.text(f'{at}.source')}"))
    if "reason" not in v["control"]:
        tiles.append((v.number("control.control_hz", "hz"), f"control, {v.number('control.missed', 'count')} ticks missed"))
    drawn = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return (
        f"<header><h1>{escape(bundle['name'])}</h1>"
        f'<p class="lead">{escape(bundle["family"])}, {v.number("bundle.num_action_steps", "count")} action steps, '
        f"{escape(bundle['precision'])}, {escape(bundle['backend'])}, {v.number('bundle.size_bytes', 'bytes')}, "
        f'digest {v.short("bundle.digest")}</p><div class="tiles">{drawn}</div></header>'
    )


def _foot(v: Values) -> str:
    made = v["made"]
    packages = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    machine = made["machine"]
    return (
        f"<footer><p>Made {escape(made['when_utc'])} in {v.number('made.seconds', 'plain')} s on {escape(machine['cpu'])}, "
        f"{v.number('made.machine.num_cpus', 'count')} CPUs, {escape(machine['system'])}. {escape(packages)}.</p></footer>"
    )
