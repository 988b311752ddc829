"""The handler behind every door: one controller, a stop that latches, rates, episodes and their ticks, over one engine.

Chunks are indexed by time (DESIGN section 8): by the tick that the client counts, else by the monotonic time since the first
look of the episode.  An episode begins with `reset`, a new controller, another prompt, a tick that goes back or a restarted
engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewam.core.records import Observation
from edgewam.robot_bridge.clock import NS
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.engine import Engine
from edgewam.robot_bridge.serving.handler import Answer, DoorError, Look
from edgewam.robot_bridge.serving.limits import Lease, Rates


@dataclass(frozen=True)
class SessionSettings:
    """idle_s: a controller that was silent for so long can be replaced.

    Requests per second: of one client, and of all together but the controller.
    """

    idle_s: float = 10.0
    requests_per_s: float = 250.0
    burst: float = 100.0
    total_requests_per_s: float = 500.0


class Session:
    """`serving.handler.Handler`.  Safe to call from several threads."""

    def __init__(
        self,
        engine: Engine,
        spec: RobotSpec,
        prompt: str,
        *,
        about: Mapping[str, Any] | None = None,
        settings: SessionSettings | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Serve `engine` to controllers of the robot `spec`; `prompt` is in force until a client names another.

        about: plain data for the metadata (name, digest, prompts).  on_event: told one line per stop and change of controller.
        """
        settings = settings or SessionSettings()
        self._engine, self._spec, self._clock_ns, self._on_event = engine, spec, clock_ns, on_event
        self._lease = Lease(settings.idle_s)
        self._rates = Rates(settings.requests_per_s, settings.burst, settings.total_requests_per_s)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._prompt, self._next_seed = prompt, 0
        self._newest = Look()
        self._last_tick, self._epoch_ns = 0, 0
        self._generation: int | None = None  # of the engine when this episode began; None: an episode is to begin
        facts = engine.facts
        self._metadata = {
            "name": spec.name, "digest": "", "prompts": [prompt], **(about or {}),
            "state_dim": spec.num_joints, "action_dim": facts.action_dim, "horizon": facts.horizon,
            "control_hz": spec.control_hz, "cameras": {name: list(shape) for name, shape in spec.camera_shapes.items()},
        }  # fmt: skip

    @property
    def metadata(self) -> Mapping[str, Any]:
        """See `Handler`."""
        return self._metadata

    def infer(self, client: str, look: Look) -> Answer:
        """See `Handler`."""
        observation, generation = self._admit(client, look)
        return self._released(self._engine.infer(observation), generation)

    def act(self, client: str, look: Look) -> Answer:
        """See `Handler`."""
        observation, generation = self._admit(client, look)
        return self._released(self._engine.act(observation), generation)

    def plan(self, client: str, look: Look) -> Mapping[str, Any]:
        """See `Handler`; the state plays no part, so one is not asked for."""
        observation, _ = self._admit(client, look, needs_state=False)
        return self._engine.plan(observation)

    def reset(self, client: str, prompt: str | None, seed: int | None = None) -> None:
        """See `Handler`."""
        self._check_open(client)
        if prompt is not None:
            checks.prompt_of(prompt)
        if seed is not None:
            seed = checks.tick_of(seed)  # the same range
        with self._lock:
            self._take_lease(client)
            self._begin(prompt, seed)

    def stop(self, client: str) -> None:
        """See `Handler`."""
        if not self._is_stopped:
            self._is_stopped = True
            self._on_event(f"STOP asked by {client}: nobody gets actions until a local reset")

    def release(self, client: str) -> None:
        """See `Handler`."""
        with self._lock:
            if self._lease.holder == client:
                self._on_event(f"controller {client} has left")
            self._lease.release(client)
            self._rates.forget(client)

    def clear_stop(self) -> None:
        """Leave STOP and begin a new episode.  For the person at the machine: no door may call this."""
        with self._lock:
            self._is_stopped, self._generation = False, None
            self._on_event("STOP cleared locally")

    @property
    def is_stopped(self) -> bool:
        """Whether a stop is latched."""
        return self._is_stopped

    @property
    def controller(self) -> str | None:
        """Who holds the lease."""
        return self._lease.holder

    def _check_open(self, client: str) -> None:
        if self._is_stopped:
            raise DoorError("stopped", "The robot was stopped. Somebody at the machine has to reset it.")
        with self._lock:
            self._rates.check(client, self._clock_ns() / NS, is_exempt=client == self._lease.holder)

    def _released(self, answer: Answer, generation: int | None) -> Answer:
        """Nothing leaves that is of another shape or not finite, or after a stop or a restart while the engine worked."""
        if self._is_stopped:
            raise DoorError("stopped", "The robot was stopped. Somebody at the machine has to reset it.")
        if generation != self._engine.generation:
            raise DoorError("engine_restarting", "The engine was restarted and does not know the episode. Hold, and ask again.")
        facts, shape = self._engine.facts, answer.actions.shape
        if shape != (facts.horizon, facts.action_dim):
            raise DoorError("internal", f"The policy answered with actions {list(shape)}. Hold, and look at its log.")
        if not np.isfinite(answer.actions).all():
            raise DoorError("internal", "The policy answered with values that are not finite. Hold, and look at its log.")
        return answer

    def _admit(self, client: str, look: Look, needs_state: bool = True) -> tuple[Observation, int | None]:
        """The observation to compute from, and the generation of the engine that its episode began on."""
        self._check_open(client)
        spec = self._spec
        look = checks.checked(look, spec.num_joints, spec.camera_shapes)
        with self._lock:
            now_ns = self._take_lease(client)
            is_other_prompt = look.prompt is not None and look.prompt != self._prompt
            is_back = look.tick is not None and look.tick < self._last_tick
            if self._generation != self._engine.generation or is_other_prompt or is_back:
                self._begin(look.prompt, None)
            images = look.images or self._newest.images
            state = self._newest.state if look.state is None else look.state
            if not images or (state is None and needs_state):
                raise DoorError("bad_request", f"The first look of an episode needs {self._needs()}.")
            self._newest = Look(images, state)
            tick = self._tick(look, now_ns)
            self._last_tick, generation = tick, self._generation
        state = np.zeros(spec.num_joints, np.float32) if state is None else state
        return Observation(images, state, tick, now_ns), generation

    def _take_lease(self, client: str) -> int:
        now_ns = self._clock_ns()
        if self._lease.take(client, now_ns / NS):
            self._generation = None
            self._on_event(f"{client} is the controller")
        return now_ns

    def _begin(self, prompt: str | None, seed: int | None) -> None:
        if seed is None:
            seed, self._next_seed = self._next_seed, self._next_seed + 1
        self._generation = None  # when the engine refuses, the episode is still to begin
        generation = self._engine.generation
        prompt = prompt or self._prompt
        self._engine.reset(prompt, seed)
        self._prompt, self._generation = prompt, generation
        self._newest, self._last_tick, self._epoch_ns = Look(), 0, 0

    def _tick(self, look: Look, now_ns: int) -> int:
        if look.tick is not None:
            return look.tick
        self._epoch_ns = self._epoch_ns or now_ns
        ticks, grid = (now_ns - self._epoch_ns) * self._spec.control_hz / NS, self._engine.facts.grid_ticks
        return max(self._last_tick, round(ticks / grid) * grid)

    def _needs(self) -> str:
        images = ", ".join(f"{name} uint8{list(shape)}" for name, shape in self._spec.camera_shapes.items())
        return f"images ({images}) and state float32[{self._spec.num_joints}]"
