"""The policy in a process of its own, seen from the door: calls with a deadline, and a keeper that replaces a dead or hung one.

A call writes its observation into shared memory, sends a short message and sleeps in the kernel until the reply wakes it; nothing
polls on that way.  A refresh (`plan`) has its own socket and memory, so that it never waits for an act, nor an act for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.serving.engine import EngineFacts
from edgewam.robot_bridge.serving.engine_handle import END_S, EngineHandle
from edgewam.robot_bridge.serving.engine_wire import Blob, ObservationBuffer, encode
from edgewam.robot_bridge.serving.handler import Answer, DoorError

KEEPER_S = 0.1  # how often the keeper looks after the engine


@dataclass(frozen=True)
class LinkSettings:
    """deadline_s: how long a call waits.  hang_s: an engine that owes an answer for longer is killed.

    Restarts: `max_restarts` within `restart_window_s`; after that the next one waits until the window has room.
    """

    deadline_s: float = 2.0
    hang_s: float = 5.0
    start_timeout_s: float = 300.0  # TensorRT engines of 7 GB load for minutes
    max_restarts: int = 3
    restart_window_s: float = 60.0


class EngineLink:
    """`serving.engine.Engine` over a child process.  Safe to call from several threads; call `start` first, `close` last."""

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        spec: RobotSpec,
        prompt: str,
        settings: LinkSettings | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`factory(**arguments)` makes the policy (`robot_bridge.policy.open_policy`); `prompt` warms it up."""
        self._settings, self._on_event = settings or LinkSettings(), on_event
        shapes = {name: list(shape) for name, shape in spec.camera_shapes.items()}
        self._call_buffer = ObservationBuffer(spec.num_joints, spec.camera_shapes)
        self._plan_buffer = ObservationBuffer(spec.num_joints, spec.camera_shapes)
        self._fds = [self._call_buffer.fd, self._plan_buffer.fd]
        self._config = {
            "factory": factory, "arguments": dict(arguments), "prompt": prompt,
            "num_joints": spec.num_joints, "camera_shapes": shapes, "fds": self._fds,
        }  # fmt: skip
        self._process: EngineHandle | None = None  # None: there is none that could answer
        self._starting: EngineHandle | None = None
        self._facts: EngineFacts | None = None
        self._generation, self._number, self._episode = 0, 0, 0
        self._call_lock = threading.Lock()
        self._plan_ready = threading.Condition()
        self._waiting: Observation | None = None  # the newest look that no refresh has taken yet
        self._context_number = -1
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the engine and wait until it has tested itself and answered once.

        Raises:
            EdgewamError: why it could not.
        """
        self._process = self._open()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep, self._send_plans)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the engine and the threads; safe to call twice."""
        self._closing.set()
        with self._plan_ready:
            self._plan_ready.notify_all()
        for process in (self._process, self._starting):
            if process is not None:
                process.end(END_S)
        self._process = None
        for thread in self._threads:
            thread.join()
        if self._process is not None:  # the keeper was just putting it in its place
            self._process.end(END_S)
            self._process = None
        self._call_buffer.close()
        self._plan_buffer.close()

    @property
    def facts(self) -> EngineFacts:
        """See `Engine`."""
        if self._facts is None:
            raise EdgewamError("Start the engine first.")
        return self._facts

    @property
    def generation(self) -> int:
        """See `Engine`."""
        return self._generation

    @property
    def pid(self) -> int | None:
        """Of the engine process, None while there is none."""
        process = self._process
        return None if process is None else process.popen.pid

    def reset(self, prompt: str, seed: int) -> None:
        """See `Engine`."""
        with self._plan_ready:
            self._waiting, self._context_number = None, -1
            self._episode += 1
        self._call("reset", None, prompt=prompt, seed=seed, episode=self._episode)

    def infer(self, observation: Observation) -> Answer:
        """See `Engine`."""
        return self._ask("infer", observation)

    def act(self, observation: Observation) -> Answer:
        """See `Engine`."""
        return self._ask("act", observation)

    def plan(self, observation: Observation) -> Mapping[str, Any]:
        """See `Engine`."""
        if self._process is None:
            raise _restarting()
        with self._plan_ready:
            self._waiting = observation
            self._plan_ready.notify()
            return {"queued": True, "context_number": self._context_number}

    def _ask(self, call: str, observation: Observation) -> Answer:
        begin = time.perf_counter()
        fields, actions = self._call(call, observation)
        assert actions is not None
        with self._plan_ready:
            self._context_number = fields["context_number"]
        timing = {"engine_ms": fields["engine_ms"], "link_ms": (time.perf_counter() - begin) * 1e3 - fields["engine_ms"]}
        return Answer(actions, fields["tick"], timing, fields["context_number"], fields["context_age_ticks"])

    def _call(self, call: str, observation: Observation | None, **fields: Any) -> tuple[dict[str, Any], Blob | None]:
        end_s = time.monotonic() + self._settings.deadline_s
        if not self._call_lock.acquire(timeout=self._settings.deadline_s):
            raise _deadline(self._settings.deadline_s)
        try:
            process = self._process
            if process is None:
                raise _restarting()
            if process.owed_since_s is not None:  # an earlier call gave up waiting
                process.reply(end_s)
            if observation is not None:
                self._call_buffer.write(observation)
            self._number += 1
            message = encode({"call": call, "number": self._number, **fields})
            process.owed, process.owed_since_s = self._number, time.monotonic()
            process.calls.send(message)
            reply, actions = process.reply(end_s)
        except TimeoutError:
            raise _deadline(self._settings.deadline_s) from None
        except (EOFError, OSError):
            raise _restarting() from None
        finally:
            self._call_lock.release()
        if "error" in reply:
            raise DoorError(reply["code"], reply["error"])
        return reply, actions

    def _open(self) -> EngineHandle:
        """A new engine that has said hello."""
        try:
            self._starting = process = EngineHandle(self._fds)
        except OSError as error:
            raise EdgewamError(f"The engine process cannot be started: {error}.") from error
        try:
            if self._closing.is_set():  # `close` may have come too early to see this process
                process.end(0.0)
            self._facts = EngineFacts(**process.hello(self._config, self._settings.start_timeout_s))
        finally:
            self._starting = None
        self._generation += 1
        return process

    def _keep(self) -> None:
        """The keeper: kill what hangs, restart what died, not too often."""
        starts: deque[float] = deque(maxlen=self._settings.max_restarts)
        while not self._closing.wait(KEEPER_S):
            process, now_s = self._process, time.monotonic()
            since_s = None if process is None else process.owed_since_s  # read once: its reply may be coming just now
            owed_s = 0.0 if since_s is None else now_s - since_s
            if process is not None and process.popen.poll() is None and owed_s < self._settings.hang_s:
                continue
            if process is not None:
                code = process.popen.poll()
                self._on_event(f"the engine {'hangs' if code is None else f'ended with code {code}'}; starting another one")
                self._process = None
                process.popen.kill()
                process.end(END_S)
            if len(starts) == starts.maxlen and now_s - starts[0] < self._settings.restart_window_s:
                continue  # too many: wait until the window has room
            starts.append(now_s)
            try:
                opened = self._open()
            except EdgewamError as error:
                self._on_event(f"the engine cannot start: {error}")
                continue
            self._process = opened
            self._on_event("the engine is back")

    def _send_plans(self) -> None:
        """Hand the newest waiting look to the engine whenever it has finished the refresh before."""
        while True:
            with self._plan_ready:
                while self._waiting is None and not self._closing.is_set():
                    self._plan_ready.wait()
                observation, self._waiting, episode = self._waiting, None, self._episode
            if self._closing.is_set():
                return
            process = self._process
            if process is None or observation is None:
                continue
            try:
                self._plan_buffer.write(observation)
                process.plans.send(encode({"call": "plan", "number": 0, "episode": episode}))
                reply, _ = process.receive(process.plans, self._settings.start_timeout_s)
            except (EOFError, OSError):  # TimeoutError is an OSError: the keeper watches calls, and calls follow
                continue
            if "error" in reply:
                self._on_event(f"a refresh was refused: {reply['error']}")
            else:
                with self._plan_ready:
                    if episode == self._episode:
                        self._context_number = reply["context_number"]


def _restarting() -> DoorError:
    return DoorError("engine_restarting", "The engine process died and is being restarted. Hold, and ask again soon.")


def _deadline(seconds: float) -> DoorError:
    return DoorError("deadline", f"The engine gave no answer within {seconds:g} s. Hold, and ask again.")
