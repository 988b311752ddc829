"""The live page as one HTML document: nothing in it is from anywhere else, so that it works on a robot without a network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from typing import Any

from edgewam.robot_bridge.view.script import SCRIPT
from edgewam.robot_bridge.view.style import STYLE


def page(config: Mapping[str, Any], token: str, nonce: str) -> str:
    """The document for a run; what changes comes later, as events.

    config: a child's configuration.  token: allows the page to stop.  nonce: of the Content-Security-Policy.
    """
    joints = config.get("joint_names") or [f"joint {index}" for index in range(config["wires"]["num_joints"])]
    static = {
        "token": token,
        "joints": list(joints),
        "ranges": [_finite(high - low) for low, high in zip(config["lower"], config["upper"], strict=True)],
        "cameras": list(config["wires"]["camera_shapes"]),
        "control_hz": config["control_hz"],
    }
    # "</script" would end the block early and "<!--" open a comment, whatever string they stand in
    block = json.dumps(static, allow_nan=False).replace("<", "\\u003c")
    title = f"{config['robot']}: {config['prompt']}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{_escape(title)}</title><style nonce="{nonce}">{STYLE}</style></head><body>'
        f"{_head(title)}<main>{_BODY}</main>"
        f'<script type="application/json" id="static" nonce="{nonce}">{block}</script>'
        f'<script nonce="{nonce}">{SCRIPT}</script></body></html>\n'
    )


def _head(title: str) -> str:
    return (
        '<header id="banner" data-mode="INIT"><div><h1>'
        f'{_escape(title)}</h1><p id="state" role="status" aria-live="polite"><b id="mode">connecting</b> '
        '<span id="cause"></span></p><p id="clock"></p></div>'
        '<button id="stop" type="button" aria-describedby="stop-note">STOP</button></header>'
        '<p id="stop-note" role="alert"></p>'
    )


_BODY = """
<section aria-labelledby="see"><h2 id="see">Cameras</h2><div id="cameras"></div></section>
<section aria-labelledby="numbers"><h2 id="numbers">Counts and ages</h2><div id="tiles"></div><p id="details"></p></section>
<section aria-labelledby="move"><h2 id="move">Joints, last 10 s</h2>
<p class="key"><i class="command"></i>command <i class="state"></i>state</p><div id="joints"></div></section>
<section aria-labelledby="late"><h2 id="late">Tick lateness</h2><canvas id="lateness" role="img"></canvas>
<p class="soft">Milliseconds from a tick's deadline to its command, share of all ticks on a square-root scale.</p></section>
<section aria-labelledby="alive"><h2 id="alive">Processes</h2><ul id="roles"></ul></section>
<noscript><p>This page needs JavaScript.</p></noscript>
"""


def _finite(value: float) -> float:
    """A joint that turns for ever has no range to scale its trace with."""
    return value if math.isfinite(value) else 2 * math.pi


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
