"""DDS as the ros2 door uses it: one participant on one domain, bounded readers, writers that never block a control tick for long.

By default everything is kept on the loopback interface, without multicast.  That is no firewall: DDS has no authentication, and
its UDP sockets still bind all addresses (ports 7400 + 250 * domain and up), where packets of other machines may arrive.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edgewam.core.errors import EdgewamError, require
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.doors.dds.inputs import Inputs
from edgewam.robot_bridge.serving.handler import DoorError

MAX_DOMAIN = 232  # beyond it the port numbers of the protocol run out
MAX_IN_A_ROW = 8  # messages of one topic, as many as a reader keeps
WAIT_MS = 100  # how often the listening thread looks whether it is to end
MAX_BLOCKING_MS = 2  # a tenth of a 50 Hz tick: how long a full reader may hold a write up
_SPARE_BYTES = 64 << 10  # of a sample beside its image, and of every other sample
_LOOPBACK_URI = (
    '<CycloneDDS><Domain Id="any"><General><AllowMulticast>false</AllowMulticast><Interfaces>'
    '<NetworkInterface name="lo" multicast="false"/></Interfaces></General><Discovery>'
    '<ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>'
    '<Peers><Peer address="127.0.0.1"/></Peers></Discovery>'
    "<Internal><MaxSampleSize>{max_sample_bytes} B</MaxSampleSize></Internal></Domain></CycloneDDS>"
)  # fmt: skip
Take = Callable[[Any, int], None]  # of a message and its arrival time; DoorError when it is refused


@dataclass(frozen=True)
class Route:
    """A topic's reader, when it has something, and who gets it."""

    topic: str
    reader: Any
    condition: Any
    take: Take
    is_shared: bool


class Node:
    """A participant with its topics.  `listen` starts the one thread that hands messages on, `close` ends everything."""

    def __init__(self, domain_id: int, inputs: Inputs, *, max_image_bytes: int, is_loopback: bool = True) -> None:
        """Join a domain.

        max_image_bytes: much larger samples are dropped before they are put together.  is_loopback: keep to this machine; else
        the environment's CYCLONEDDS_URI decides, also about sizes.

        Raises:
            EdgewamError: no such domain, or no socket can be opened.
        """
        if not 0 <= domain_id <= MAX_DOMAIN:
            raise EdgewamError(f"A DDS domain must be 0 to {MAX_DOMAIN}, got {domain_id}.")
        domain = require("cyclonedds.domain", extra="ros2")
        core = require("cyclonedds.core", extra="ros2")
        if is_loopback:
            # must be there before the first participant of the process
            os.environ["CYCLONEDDS_URI"] = _LOOPBACK_URI.format(max_sample_bytes=max_image_bytes + _SPARE_BYTES)
        try:
            self._participant = domain.DomainParticipant(domain_id)
        except core.DDSException as error:
            raise EdgewamError(f"Cannot join DDS domain {domain_id}: {error}. Is the network configuration right?") from error
        self._inputs = inputs
        self._wait_set = core.WaitSet(self._participant)
        self._topics: dict[str, Any] = {}
        self._routes: list[Route] = []
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="dds", daemon=True)

    def read(self, topic: str, kind: Any, take: Take, *, is_reliable: bool = False, is_shared: bool = False) -> None:
        """Hand messages of a topic to `take`, the newest one only.  Best effort hears both kinds of publishers.

        is_reliable: hear reliable publishers without loss.  is_shared: hear all publishers, not only the first one.
        """
        sub, qos, util = (require(f"cyclonedds.{name}", extra="ros2") for name in ("sub", "qos", "util"))
        policy = qos.Policy
        kept = policy.History.KeepLast(MAX_IN_A_ROW if is_reliable else 1)
        how = policy.Reliability.Reliable(util.duration(milliseconds=MAX_BLOCKING_MS)) if is_reliable else None
        reader = sub.DataReader(
            self._participant,
            self._topic(topic, kind),
            qos.Qos(how or policy.Reliability.BestEffort, policy.Durability.Volatile, kept),
        )
        core = require("cyclonedds.core", extra="ros2")
        condition = core.ReadCondition(reader, core.ViewState.Any | core.InstanceState.Any | core.SampleState.NotRead)
        self._wait_set.attach(condition)
        self._routes.append(Route(topic, reader, condition, take, is_shared))

    def writer(self, topic: str, kind: Any) -> Any:
        """A reliable writer that keeps the last message; its `write` raises DDSException when readers hold it up for too long."""
        pub, qos, util = (require(f"cyclonedds.{name}", extra="ros2") for name in ("pub", "qos", "util"))
        policy = qos.Policy
        how = policy.Reliability.Reliable(util.duration(milliseconds=MAX_BLOCKING_MS))
        return pub.DataWriter(
            self._participant, self._topic(topic, kind), qos.Qos(how, policy.Durability.Volatile, policy.History.KeepLast(1))
        )

    def listen(self) -> None:
        """Begin to hand on messages."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening and leave the domain."""
        self._quit.set()
        if self._thread.is_alive():
            self._thread.join()
        self._routes.clear()
        self._topics.clear()
        del self._wait_set, self._participant

    def _topic(self, name: str, kind: Any) -> Any:
        if name not in self._topics:
            self._topics[name] = require("cyclonedds.topic", extra="ros2").Topic(self._participant, name, kind)
        return self._topics[name]

    def _listen(self) -> None:
        util = require("cyclonedds.util", extra="ros2")
        while not self._quit.is_set():
            self._wait_set.wait(util.duration(milliseconds=WAIT_MS))
            take_round(self._routes, self._inputs)


def take_round(routes: Iterable[Route], inputs: Inputs) -> None:
    """Take what each topic has, a few messages at a time: who floods one topic silences no other, the stop least of all."""
    for route in routes:
        for _ in range(MAX_IN_A_ROW):
            if not take_one(route, inputs):
                break


def take_one(route: Route, inputs: Inputs) -> bool:
    """Take one message of a topic; False when there is none.  Whatever is wrong with it is counted and ends there."""
    try:
        found = route.reader.take(1, condition=route.condition)
        if not found:
            return False
        message, t_ns = found[0], now_ns()
        if message.sample_info.valid_data:
            if not route.is_shared:
                inputs.admit(route.topic, message.sample_info.publication_handle, t_ns)
            route.take(message, t_ns)
    except DoorError as error:
        inputs.refuse(route.topic, str(error))
    except Exception as error:  # foreign bytes that the library could not decode; the sample is gone by now
        inputs.refuse(route.topic, f"cannot be decoded ({type(error).__name__})")
    return True
