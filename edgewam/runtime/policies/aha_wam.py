"""The host side of AHA-WAM in NumPy: when to refresh, which noise and which positions a chunk has, memory slots, prefixes.

Chunks are indexed by time: chunk_index = floor((t_chunk - t_context) / chunk_size), and its noise and action positions
are those of that index in the newest context's horizon (DESIGN section 8, facts/aha_wam.md sections 4 and 5).  A context
may be made in the background or in another process: it serves every chunk from its own tick on, however late it comes.
Which template a prompt was embedded with is the bundle's business; here prompts are names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.observation import compose_images
from edgewam.core.records import ActionChunk, Observation
from edgewam.core.rope import axis_rope
from edgewam.runtime.ablation import bypass
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.memory import Array
from edgewam.runtime.policies.aha_wam_host import HostConfig
from edgewam.runtime.policies.aha_wam_refresh import Canvas, Floats, Refreshes
from edgewam.runtime.policies.host_section import synthetic_observation

ABLATIONS = ("memory", "router")
FIGURE_PROGRAMS = {"L_chunk": "act", "L_prefill": "plan"}  # what the timed calls run; the others are the host alone


class AhaWamPolicy:
    """Observations in, action chunks out; see `robot_bridge.policy.SplitPolicy`.  Holds the state of one episode."""

    def __init__(self, bundle: Bundle) -> None:
        self.host = HostConfig.of(bundle)
        self._bundle = bundle
        self._pipeline = bundle.pipeline
        self._uses_memory = True
        self._refreshes = Refreshes(self._pipeline, self.host, bundle.digest)

    def reset(self, prompt: str, seed: int) -> None:
        """Forget the episode and take a new instruction; the seed fixes all noise until the next reset.

        Raises:
            EdgewamError: a prompt that the bundle has no embedding of.
        """
        inputs = self._bundle.prompt(prompt)
        self._refreshes.reset(seed)
        self._pipeline.reset()
        self._pipeline.run("prompt", inputs)

    def infer(self, observation: Observation) -> ActionChunk:
        """`plan` when a refresh is due, then `act`.

        Due: no context yet, one of `refresh_ticks` or more ago, or one on whose grid this tick does not lie.
        """
        if self.context_tick is None or self.host.is_due(observation.tick - self.context_tick):
            self.plan(observation)
        return self.act(observation)

    def plan(self, observation: Observation) -> None:
        """Refresh the planner from an observation: remember its frame and draw the noise of a new horizon."""
        self.plan_canvas(self.compose(observation), observation.tick)

    def act(self, observation: Observation, prefix: Floats | None = None) -> ActionChunk:
        """A chunk [chunk_size, D] whose row 0 belongs to `observation.tick`.

        Args:
            observation: images and state at the chunk's first tick.
            prefix: float32 [k, D], robot units: the first k rows, already decided (k <= chunk_size).

        Raises:
            EdgewamError: no plan yet, a tick beyond its horizon or off its grid: the bridge must HOLD.
        """
        canvas = self.compose(observation)
        actions = self.act_canvas(canvas, observation.state, observation.tick, prefix)
        return ActionChunk(actions, observation.tick, observation.tick, observation.t_capture_ns)

    def compose(self, observation: Observation) -> Canvas:
        """The canvas uint8 [image_height, image_width, 3] of an observation's cameras."""
        host = self.host
        return compose_images(observation.images, host.image_height, host.image_width, host.composition)

    def plan_canvas(self, canvas: Canvas, tick: int, noise: Floats | None = None) -> None:
        """`plan` from a composed canvas; `noise` [horizon, D] replaces the drawn one, to compare policies."""
        self._refreshes.run(canvas, tick, noise)

    def act_canvas(self, canvas: Canvas, state: Floats, tick: int, prefix: Floats | None = None) -> Floats:
        """`act` from a composed canvas and the state [state_dim] in robot units -> actions [chunk_size, D] in robot units."""
        host = self.host
        context = self._refreshes.context
        if context is None:
            raise EdgewamError("There is no plan yet: call plan (or infer) first.")
        rows = host.rows(tick, context.tick)
        cos, sin = axis_rope(rows, host.head_dim, host.rope_theta)
        given, mask = self._prefix(prefix)
        inputs: dict[str, Array] = {
            "image": canvas, "state": state, "noise": context.noise[rows], "prefix": given, "prefix_mask": mask,
            "chunk_cos": cos, "chunk_sin": sin,
        }  # fmt: skip
        return self._pipeline.run("act", inputs)["actions"]

    def start_plan(self, observation: Observation) -> None:
        """Begin a refresh; chunks go on with the context before it until `poll_plan` has found it done.

        Where nothing can run in the background (on the host) it is done when this returns.

        Raises:
            EdgewamError: before `reset`, a tick before the last refresh, or a refresh that is under way.
        """
        self._refreshes.start(self.compose(observation), observation.tick)

    def poll_plan(self) -> bool:
        """Whether no refresh is under way (any more), without waiting; one that has just ended serves chunks from now on."""
        return self._refreshes.poll()

    def export_context(self) -> bytes:
        """The newest context, for `import_context` of a policy of the same bundle, prompt and seed; EdgewamError without one."""
        return self._refreshes.to_bytes()

    def import_context(self, data: bytes) -> None:
        """Act from another policy's context from now on; ContractError when it is not a whole one of this bundle."""
        self._refreshes.take(data)

    @property
    def context_tick(self) -> int | None:
        """Tick of the context that chunks are made from; None before the first one."""
        return None if self._refreshes.context is None else self._refreshes.context.tick

    @property
    def refresh_ticks(self) -> int:
        """Ticks between refreshes."""
        return self.host.refresh_ticks

    @property
    def horizon(self) -> int:
        """Ticks that a context reaches."""
        return self.host.horizon

    @property
    def chunk_size(self) -> int:
        """Rows of a chunk."""
        return self.host.chunk_size

    @property
    def offset_trained(self) -> bool:
        """Whether chunks may start off the grid of their context."""
        return self.host.offset_trained

    @property
    def prefix_trained(self) -> bool:
        """Whether the first rows of a chunk may be given."""
        return self.host.prefix_trained

    @property
    def max_prefix(self) -> int:
        """The longest prefix that these weights have seen in training, in rows."""
        host = self.host
        return (host.max_prefix or host.chunk_size // 2) if host.prefix_trained else 0

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(horizon, D) of the noise that `sample` takes."""
        return self.host.horizon, self.host.action_dim

    def sample(self, observation: Observation, noise: Floats) -> Floats:
        """The first chunk of an episode that starts at this observation, for given noise [horizon, D], in units of the
        action's std [chunk_size, D]: what gate 2 compares.  Call `reset` once before."""
        if len(self.host.action_std) != self.host.action_dim:
            raise EdgewamError(
                "This bundle does not record the std of its actions, so they cannot be compared. Compile it again."
            )
        self._refreshes.forget()
        self._pipeline.reset("plan")
        canvas = self.compose(observation)
        self.plan_canvas(canvas, 0, noise)
        actions = self.act_canvas(canvas, observation.state, 0)
        return (actions / np.array(self.host.action_std, np.float32)).astype(np.float32)

    def refresh_every(self, ticks: int) -> None:
        """Refresh the planner every so many control ticks instead of the bundle's own number.

        Raises:
            EdgewamError: less than one chunk, more than the horizon, or off the grid of weights trained without offsets.
        """
        host = self.host
        off_grid = not host.offset_trained and ticks % host.chunk_size
        if not host.chunk_size <= ticks <= host.horizon or off_grid:
            grid = "" if host.offset_trained else f" and a multiple of {host.chunk_size}"
            raise EdgewamError(
                f"A refresh every {ticks} ticks is not possible: choose from {host.chunk_size} (a chunk) to {host.horizon} "
                f"(the horizon){grid}."
            )
        self.host = replace(host, refresh_ticks=ticks)

    def ablate(self, part: str) -> None:
        """Switch off the rolling memory or the router (chunks then read the planner's own keys and values), for good.

        Raises:
            EdgewamError: another part.
        """
        if part not in ABLATIONS:
            raise EdgewamError(f"This policy cannot run without '{part}'. It can run without: {', '.join(ABLATIONS)}.")
        if part == "router":
            self._refreshes.wait()
            self._pipeline = self._pipeline.with_programs(
                bypass(self._pipeline.programs, "router", output="routed", source="context")
            )
        self._uses_memory = self._uses_memory and part != "memory"
        self._refreshes = Refreshes(self._pipeline, self.host, self._bundle.digest, self._uses_memory)

    def _prefix(self, prefix: Floats | None) -> tuple[Floats, npt.NDArray[np.bool_]]:
        host = self.host
        given = np.zeros((host.chunk_size, host.action_dim), np.float32)
        mask = np.zeros(host.chunk_size, np.bool_)
        if prefix is None or not len(prefix):
            return given, mask
        if not host.prefix_trained:
            raise EdgewamError("These weights were not trained with action prefixes. Act without a prefix, or train with them.")
        if prefix.ndim != 2 or prefix.shape[1] != host.action_dim or len(prefix) > host.chunk_size:
            raise ContractError(
                f"A prefix must be float32 [k <= {host.chunk_size}, {host.action_dim}], got {list(prefix.shape)}."
            )
        given[: len(prefix)], mask[: len(prefix)] = prefix, True
        return given, mask


def open_policy(bundle: Bundle) -> AhaWamPolicy:
    """The plugin's entry point."""
    return AhaWamPolicy(bundle)


def rehearse(bundle: Bundle) -> None:
    """A short episode on synthetic observations, whose program runs become the bundle's golden vectors.

    Raises:
        EdgewamError: a bundle without prompts.
    """
    if not bundle.prompts:
        raise EdgewamError("A policy bundle needs at least one prompt. Give one with --prompt.")
    policy = AhaWamPolicy(bundle)
    policy.reset(next(iter(bundle.prompts)), seed=0)
    refresh = min(policy.host.refresh_ticks, policy.host.horizon - policy.host.chunk_size)
    for tick in (0, policy.host.chunk_size, refresh, 2 * refresh):
        policy.infer(synthetic_observation(policy.host, tick))


def timed_calls(bundle: Bundle) -> dict[str, Callable[[], object]]:
    """The figures of the timing contract: `L_chunk` (canvas and state in, actions out), `L_prefill`, `L_compose`."""
    policy = AhaWamPolicy(bundle)
    policy.reset(next(iter(bundle.prompts)), seed=0)
    observation = synthetic_observation(policy.host, 0)
    canvas = policy.compose(observation)
    policy.plan_canvas(canvas, 0)
    return {
        "L_chunk": lambda: policy.act_canvas(canvas, observation.state, 0),
        "L_prefill": lambda: policy.plan_canvas(canvas, 0),
        "L_compose": lambda: policy.compose(observation),
    }
