"""The planner's side of the AHA-WAM host: runs `plan`, now or in the background, and holds the context that chunks read.

Memory slots belong to whoever plans: a context taken from another process replaces what chunks read and nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.rope import frame_rope
from edgewam.runtime.back_buffers import shared_states
from edgewam.runtime.memory import Array
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.policies.aha_wam_context import Context, from_bytes, to_bytes
from edgewam.runtime.policies.aha_wam_host import HostConfig

Floats = npt.NDArray[np.float32]
Canvas = npt.NDArray[np.uint8]


class Refreshes:
    """Refreshes of one episode.  `context`: the newest finished one; `count`: own ones, which fill the memory slots in order."""

    def __init__(self, pipeline: Pipeline, host: HostConfig, bundle: str, use_memory: bool = True) -> None:
        """`bundle`: the digest that contexts of other processes must bear."""
        self._pipeline, self._host, self._bundle, self._use_memory = pipeline, host, bundle, use_memory
        self._seed: int | None = None
        self._coming: Context | None = None  # of a refresh that is under way
        self.context: Context | None = None
        self.count = 0

    def reset(self, seed: int) -> None:
        """Begin an episode: forget the context; `seed` fixes the noise of all that follow.  States are the caller's to zero."""
        self.forget()
        self._seed = seed

    def forget(self) -> None:
        """Drop the context and count anew."""
        self.wait()
        self.context, self.count = None, 0

    def run(self, canvas: Canvas, tick: int, noise: Floats | None = None) -> None:
        """Refresh at `tick`; `noise` [horizon, D] replaces the drawn one.

        Raises:
            EdgewamError: before `reset`, or a tick before the last refresh.
        """
        self.wait()
        coming, inputs = self._prepare(canvas, tick, noise)
        self._pipeline.run("plan", inputs)
        self._use(coming)

    def start(self, canvas: Canvas, tick: int) -> None:
        """Begin a refresh; without a device that can run it in the background it is done when this returns.

        Raises:
            EdgewamError: as `run`, or another one is under way.
        """
        if self._coming is not None:
            raise EdgewamError("A refresh is under way: wait until poll_plan() says that it is done.")
        if not self._pipeline.overlap:
            return self.run(canvas, tick)
        coming, inputs = self._prepare(canvas, tick, None)
        self._pipeline.start("plan", inputs)
        self._coming = coming

    def poll(self) -> bool:
        """Whether no refresh is under way (any more), without waiting; one that has just ended is in use from now on."""
        if self._coming is not None and self._pipeline.is_done("plan"):
            self.wait()
        return self._coming is None

    def wait(self) -> None:
        """Wait for a refresh that is under way, if any, and use it."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._pipeline.finish("plan")
            self._use(coming)

    def to_bytes(self) -> bytes:
        """The newest context with the states that chunks read; EdgewamError when there is none."""
        if self.context is None:
            raise EdgewamError("There is no plan yet: call plan first.")
        states: dict[str, Array] = {name: self._pipeline.state(name) for name in shared_states(self._pipeline.programs)}
        return to_bytes(self.context, states, self._bundle)

    def take(self, data: bytes) -> None:
        """Use a context that another process has made.

        Raises:
            EdgewamError: before `reset`.
            ContractError: not a whole context of this bundle.
        """
        if self._seed is None:
            raise EdgewamError("Call reset(prompt, seed) before the first context.")
        context, states = from_bytes(data, self._bundle)
        wanted, shape = shared_states(self._pipeline.programs), (self._host.horizon, self._host.action_dim)
        if states.keys() != wanted.keys() or context.noise.shape != shape:
            raise ContractError(f"A planner context needs the states {', '.join(wanted)} and noise {list(shape)}.")
        self.wait()
        for name, array in states.items():
            self._pipeline.set_state(name, array)
        self.context = context

    def _prepare(self, canvas: Canvas, tick: int, noise: Floats | None) -> tuple[Context, dict[str, Array]]:
        if self._seed is None:
            raise EdgewamError("Call reset(prompt, seed) before the first observation.")
        if tick < 0 or (self.context is not None and tick < self.context.tick):
            raise EdgewamError(f"Tick {tick} lies before the episode or its last refresh; call reset at the start of an episode.")
        host, number = self._host, self.count
        if noise is None:
            noise = np.random.default_rng((self._seed, number)).standard_normal((host.horizon, host.action_dim), np.float32)
        cos, sin = frame_rope(tick // host.rope_stride, host.grid, host.rope_dims, host.rope_theta)
        bias = np.full(host.memory_slots, -np.inf, np.float32)
        if self._use_memory:
            bias[: min(number, host.memory_slots)] = 0.0  # slots fill in order; once full, all are valid
        inputs: dict[str, Array] = {
            "image": canvas, "memory_bias": bias, "slot": np.array([number % host.memory_slots]),
            "frame_cos": cos, "frame_sin": sin,
        }  # fmt: skip
        return Context(tick, number, noise.copy()), inputs

    def _use(self, context: Context) -> None:
        self.context, self.count = context, context.number + 1
