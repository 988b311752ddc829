"""The view process: a live page about the run for a browser on this machine, and a STOP button.

The button does what a network may do: it asks io to latch STOP.  Nothing here can arm, reset or move the arm.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.robot_bridge.clock import NS, now_ns, sleep_until
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.serving.access import LOOPBACK, Address, listen, read_token
from edgewam.robot_bridge.view.page import page
from edgewam.robot_bridge.view.server import ViewServer, serve_in_thread
from edgewam.robot_bridge.view.watch import Watch

PERIOD_NS = NS // 10  # of the page: it is for eyes


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Serve until told to stop.  In the status, `count` is the number of watchers and `tick` the port.

    config: view_port (0: any free one); view_bind, an address that other machines may reach, needs view_token_file.
    """
    token_file = config.get("view_token_file")
    token = read_token(Path(token_file)) if token_file else None
    wanted = Address(str(config.get("view_bind") or LOOPBACK), int(config["view_port"]))
    listener, address = listen(wanted, token)
    live = Live(config, link.wires)
    server = ViewServer(listener, address, live, token)
    end = serve_in_thread(server)
    most, next_ns = 0, now_ns()
    try:
        while not link.is_stopping:
            event = live.update(server.num_watchers > 0)
            if server.num_watchers:
                server.publish("glance", event)
            server.drop_slow_requests()
            most = max(most, server.num_watchers)
            link.report(count=server.num_watchers, tick=address.port)
            next_ns = max(next_ns + PERIOD_NS, now_ns())
            sleep_until(next_ns)
    finally:
        end()
    return {"address": str(address), "most_watchers": most, "stops": live.stops}


class Live:
    """A run as the server's source: a `Watch`, the page, and the one record that this process writes."""

    def __init__(self, config: Mapping[str, Any], wires: Wires) -> None:
        self._config = config
        self._watch = Watch(config, wires)
        self._requests = wires["requests"]
        self._lock = threading.Lock()
        self._stop_lock = threading.Lock()  # of its own: nothing that is drawn may delay a stop

    def update(self, is_watched: bool) -> dict[str, Any]:
        """The event for this moment; pictures only when somebody looks."""
        with self._lock:
            points = self._watch.update()
            return self._event(points) if is_watched else {}

    def _event(self, points: list[list[Any]]) -> dict[str, Any]:
        watch = self._watch
        return {**watch.glance, "points": points, "pictures": watch.pictures(), "lost_cameras": watch.lost_cameras()}

    def page(self, token: str, nonce: str) -> str:
        """See `server.Source`."""
        return page(self._config, token, nonce)

    def hello(self) -> dict[str, Any]:
        """See `server.Source`: the moment, and the last seconds of motion."""
        with self._lock:
            return self._event(list(self._watch.history))

    def png(self, camera: str) -> bytes | None:
        """See `server.Source`."""
        with self._lock:
            return self._watch.png(camera)

    @property
    def stops(self) -> int:
        """How often a stop was asked for, also of a predecessor of this process.

        When that one was killed while it wrote, nobody knows: then the time, which is more than anybody has counted.
        """
        torn = self._requests.torn
        newest = self._requests.read()
        if newest is not None:
            return int(newest[1]["stops"])
        return now_ns() if self._requests.torn > torn else 0

    def stop(self) -> int:
        """See `server.Source`."""
        with self._stop_lock:
            value = self._requests.blank()
            value["stops"] = self.stops + 1  # io stops when it grows
            self._requests.write(value)
            return int(value["stops"])
