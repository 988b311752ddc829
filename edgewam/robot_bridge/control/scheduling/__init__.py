"""How one chunk takes over from another: strategies that answer "what is the target of this tick", always by time.

`SCHEDULES` names them.  `rtc` is `replace` at the seam: the new chunk was computed with the old one's rows as its beginning, so
the two agree where they meet.  Whether a chunk may be used at all is decided before it comes here (`chunks.check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.scheduling.crossfade import Crossfade
from edgewam.robot_bridge.control.scheduling.ensemble import Ensemble
from edgewam.robot_bridge.control.scheduling.replace import Replace
from edgewam.robot_bridge.control.scheduling.timed_rows import Schedule

SCHEDULES = ("replace", "ensemble", "crossfade", "rtc")


def open_schedule(config: Mapping[str, Any]) -> Schedule:
    """The strategy `config["schedule"]`, with crossfade_ticks and ensemble_decay where they matter.

    Raises:
        EdgewamError: an unknown name.
    """
    match config["schedule"]:
        case "replace" | "rtc":
            return Replace()
        case "ensemble":
            return Ensemble(float(config["ensemble_decay"]))
        case "crossfade":
            return Crossfade(int(config["crossfade_ticks"]))
    raise EdgewamError(f"Unknown schedule '{config['schedule']}'. Available: {', '.join(SCHEDULES)}.")
