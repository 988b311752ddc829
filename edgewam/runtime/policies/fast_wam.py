"""The host side of Fast-WAM in NumPy: every observation is answered with the whole horizon of actions that begins at it.

There is no context that outlives a chunk: nothing to refresh, and a chunk may begin at any tick.  The noise of a chunk follows
from the episode's seed and its tick, so an episode can be played again from any of its observations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.core.observation import compose_images
from edgewam.core.records import ActionChunk, Observation
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.memory import Array
from edgewam.runtime.policies.host_section import read_section, synthetic_observation

FIGURE_PROGRAMS = {"L_chunk": "act"}  # what the timed calls run; the others are the host alone

Floats = npt.NDArray[np.float32]
Canvas = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class HostConfig:
    """What the programs' inputs are computed from; see `host_config` of the family.

    execute_steps: actions of a chunk that are executed before the next one, where nobody asks for others.  composition: where
    the cameras go on the canvas.  action_std: of the training data, to express actions in units of it.
    """

    image_height: int
    image_width: int
    state_dim: int
    action_dim: int
    horizon: int
    execute_steps: int
    composition: str = "three_cameras"
    action_std: tuple[float, ...] = ()


class FastWamPolicy:
    """Observations in, action chunks out; see `robot_bridge.policy.Policy`.  Holds the state of one episode."""

    def __init__(self, bundle: Bundle) -> None:
        self.host = read_section(bundle, HostConfig)
        self._bundle, self._pipeline = bundle, bundle.pipeline
        self._seed: int | None = None

    def reset(self, prompt: str, seed: int) -> None:
        """Take a new instruction; the seed fixes all noise until the next reset.

        Raises:
            EdgewamError: a prompt that the bundle has no embedding of.
        """
        inputs = self._bundle.prompt(prompt)
        self._seed = seed
        self._pipeline.reset()
        self._pipeline.run("prompt", inputs)

    def infer(self, observation: Observation) -> ActionChunk:
        """See `act`."""
        return self.act(observation)

    def plan(self, observation: Observation) -> None:
        """Nothing to refresh: every chunk looks at its own observation."""

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk [horizon, D] whose row 0 belongs to `observation.tick`.

        Raises:
            EdgewamError: before `reset`, or a tick before the episode.
        """
        actions = self.act_canvas(self.compose(observation), observation.state, observation.tick)
        return ActionChunk(actions, observation.tick, observation.tick, observation.t_capture_ns)

    def compose(self, observation: Observation) -> Canvas:
        """The canvas uint8 [image_height, image_width, 3] of an observation's cameras."""
        host = self.host
        return compose_images(observation.images, host.image_height, host.image_width, host.composition)

    def act_canvas(self, canvas: Canvas, state: Floats, tick: int, noise: Floats | None = None) -> Floats:
        """`act` from a composed canvas and the state [state_dim] in robot units -> actions [horizon, D] in robot units.

        `noise` [horizon, D] replaces the drawn one, to compare policies.
        """
        if self._seed is None:
            raise EdgewamError("Call reset(prompt, seed) before the first observation.")
        if tick < 0:
            raise EdgewamError(f"Tick {tick} lies before the episode; call reset at the start of an episode.")
        if noise is None:
            noise = np.random.default_rng((self._seed, tick)).standard_normal(self.noise_shape, np.float32)
        inputs: dict[str, Array] = {
            "image": canvas, "state": state, "noise": noise,
            "prefix": np.zeros(self.noise_shape, np.float32), "prefix_mask": np.zeros(self.host.horizon, np.bool_),
        }  # fmt: skip
        return self._pipeline.run("act", inputs)["actions"]

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(horizon, D) of the noise that `sample` takes."""
        return self.host.horizon, self.host.action_dim

    def sample(self, observation: Observation, noise: Floats) -> Floats:
        """The chunk of this observation for given noise [horizon, D], in units of the action's std [horizon, D]: what gate 2
        compares.  Call `reset` once before."""
        if len(self.host.action_std) != self.host.action_dim:
            raise EdgewamError(
                "This bundle does not record the std of its actions, so they cannot be compared. Compile it again."
            )
        actions = self.act_canvas(self.compose(observation), observation.state, 0, noise)
        return (actions / np.array(self.host.action_std, np.float32)).astype(np.float32)


def open_policy(bundle: Bundle) -> FastWamPolicy:
    """The plugin's entry point."""
    return FastWamPolicy(bundle)


def rehearse(bundle: Bundle) -> None:
    """A short episode on synthetic observations, whose program runs become the bundle's golden vectors.

    Raises:
        EdgewamError: a bundle without prompts.
    """
    if not bundle.prompts:
        raise EdgewamError("A policy bundle needs at least one prompt. Give one with --prompt.")
    policy = FastWamPolicy(bundle)
    policy.reset(next(iter(bundle.prompts)), seed=0)
    for number in range(3):
        policy.infer(synthetic_observation(policy.host, number * policy.host.execute_steps))


def timed_calls(bundle: Bundle) -> dict[str, Callable[[], object]]:
    """The figures of the timing contract: `L_chunk` (canvas and state in, actions out, prefill included) and `L_compose`."""
    policy = FastWamPolicy(bundle)
    policy.reset(next(iter(bundle.prompts)), seed=0)
    observation = synthetic_observation(policy.host, 0)
    canvas = policy.compose(observation)
    return {
        "L_chunk": lambda: policy.act_canvas(canvas, observation.state, 0),
        "L_compose": lambda: policy.compose(observation),
    }
