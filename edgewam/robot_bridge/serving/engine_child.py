"""The engine process of a server: the policy, answering the door process over a socket pair until that closes.

Calls (reset, infer, act) come one at a time and go before refreshes; a refresh runs beside acting where the policy can do that
(`start_plan`, `poll_plan`), and between calls where it cannot.  An error that nobody foresaw ends the process: the door starts a
new one, which is trusted more than a policy in an unknown state.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.clock import become_preferred
from edgewam.robot_bridge.policy import Policy, open_policy
from edgewam.robot_bridge.serving.engine_wire import MAX_MESSAGE, ObservationBuffer, decode, encode

POLL_PLAN_S = 0.001  # while a refresh runs on the device there is nothing that could wake us
REFUSALS = {"reset": "unknown_prompt", "infer": "bad_request", "act": "no_plan", "plan": "bad_request"}


def main() -> int:
    """Serve the descriptors named on the command line; exit code 0 when the door has gone, 1 when an error ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the door, which then closes our sockets
    calls, plans = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    message = calls.recv(MAX_MESSAGE)
    if not message:
        return 0  # the door left before it had said anything
    config, _ = decode(message)
    become_preferred()  # before the policy starts threads, which inherit it
    try:
        engine = _Engine(config)
    except Exception as error:
        if not isinstance(error, EdgewamError):
            traceback.print_exc()
        kind = "" if isinstance(error, EdgewamError) else f"{type(error).__name__}: "
        calls.send(encode({"error": f"{kind}{error}"[:2000]}))
        return 1
    calls.send(encode(engine.facts))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the door is gone
        engine.serve(calls, plans)
    return 0


class _Engine:
    def __init__(self, config: dict[str, Any]) -> None:
        shapes = config["camera_shapes"]
        self._call_buffer, self._plan_buffer = (ObservationBuffer(config["num_joints"], shapes, fd) for fd in config["fds"])
        self._policy: Policy = open_policy(config["factory"], config["arguments"])
        self._episode, self._context_number, self._context_tick = 0, -1, None
        self._planning: dict[str, Any] | None = None  # the request whose refresh runs beside us
        images = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
        self._policy.reset(config["prompt"], 0)
        chunk = self._policy.infer(Observation(images, np.zeros(config["num_joints"], np.float32), 0))  # warms up, too
        rows, columns = chunk.actions.shape
        is_on_grid = not getattr(self._policy, "offset_trained", True)
        self.facts = {"horizon": rows, "action_dim": columns, "grid_ticks": rows if is_on_grid else 1}

    def serve(self, calls: socket.socket, plans: socket.socket) -> None:
        """Until either socket closes."""
        while True:
            wait_s = None if self._planning is None else POLL_PLAN_S
            listened = [calls] if self._planning is not None else [calls, plans]
            readable, _, _ = select.select(listened, [], [], wait_s)
            if self._planning is not None and self._policy.poll_plan():  # type: ignore[attr-defined]
                plans.send(encode(self._planned(self._planning)))
                self._planning = None
            if not readable:
                continue
            channel = calls if calls in readable else plans
            message = channel.recv(MAX_MESSAGE)
            if not message:
                return
            request, _ = decode(message)
            reply = self._replied(request)
            if reply is not None:
                channel.send(reply)

    def _replied(self, request: dict[str, Any]) -> bytes | None:
        call, number = request["call"], request["number"]
        try:
            if call == "plan":
                fields = self._plan(request)
                return None if fields is None else encode(fields)
            if call == "reset":
                self._policy.reset(request["prompt"], request["seed"])
                self._episode, self._context_number, self._context_tick = request["episode"], -1, None
                return encode({"number": number})
            begin = time.perf_counter()
            observation = self._call_buffer.read()
            chunk = self._policy.infer(observation) if call == "infer" else self._policy.act(observation)
            return self._answer(number, chunk, (time.perf_counter() - begin) * 1e3)
        except EdgewamError as error:
            return encode({"number": number, "code": REFUSALS[call], "error": str(error)[:2000]})

    def _answer(self, number: int, chunk: ActionChunk, engine_ms: float) -> bytes:
        if chunk.actions.shape != (self.facts["horizon"], self.facts["action_dim"]):
            text = f"The policy answered with actions {list(chunk.actions.shape)}. Hold, and look at its log."
            return encode({"number": number, "code": "internal", "error": text})
        context = self._note_context()
        age = 0 if context is None else chunk.start_tick - context
        fields = {"number": number, "tick": chunk.start_tick, "engine_ms": engine_ms}
        return encode({**fields, "context_number": self._context_number, "context_age_ticks": age}, chunk.actions)

    def _plan(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["episode"] != self._episode:
            return {"number": request["number"], "code": "bad_request", "error": "that episode is over"}
        observation = self._plan_buffer.read()
        if hasattr(self._policy, "start_plan"):
            self._policy.start_plan(observation)
            if not self._policy.poll_plan():  # type: ignore[attr-defined]
                self._planning = request
                return None
        else:
            self._policy.plan(observation)
        return self._planned(request)

    def _planned(self, request: dict[str, Any]) -> dict[str, Any]:
        self._note_context()
        return {"number": request["number"], "context_number": self._context_number}

    def _note_context(self) -> int | None:
        """Count the policy's contexts by their ticks; None for a policy that has none."""
        tick = getattr(self._policy, "context_tick", None)
        if tick is not None and tick != self._context_tick:
            self._context_number += 1
            self._context_tick = tick
        return tick


if __name__ == "__main__":
    sys.exit(main())
