"""What a policy is to the bridge, how one is made in another process, and small policies without a model.

A policy is named by a dotted factory and plain arguments, so that it can be built inside the engine process or an evaluation
worker; this package never learns what is behind it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError, PluginError
from edgewam.core.records import ActionChunk, Observation

IMAGES = "images"  # the ablation every policy has; others (memory, router) are the policy's own


@runtime_checkable
class Policy(Protocol):
    """Observations in, action chunks out.  Ticks are those of the episode; a policy holds the state of one episode."""

    def reset(self, prompt: str, seed: int) -> None:
        """Forget the episode: memory, planner state, noise.  The seed fixes all noise drawn until the next reset."""

    def infer(self, observation: Observation) -> ActionChunk:
        """`plan` when a refresh is due at this tick, then `act`."""

    def plan(self, observation: Observation) -> None:
        """Refresh the slow part from an observation."""

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk whose row 0 belongs to `observation.tick`, from the newest plan."""


@runtime_checkable
class SplitPolicy(Policy, Protocol):
    """A policy whose slow part can run beside `act`: in the background of one device, or in another process.

    What `plan` leaves for `act` is its context.  A context of tick c serves every chunk from tick c on, whenever it arrives, as
    far as its horizon reaches; weights that were not `offset_trained` start chunks a multiple of `chunk_size` ticks after c.
    `act` never changes the context.  A policy may also offer `max_prefix`, see `longest_prefix`.
    """

    @property
    def context_tick(self) -> int | None:
        """Tick of the context in use; None before the first one."""

    @property
    def refresh_ticks(self) -> int:
        """Ticks between refreshes, where nobody asks for others."""

    @property
    def horizon(self) -> int:
        """Ticks that a context reaches."""

    @property
    def chunk_size(self) -> int:
        """Rows of a chunk."""

    @property
    def offset_trained(self) -> bool:
        """Whether a chunk may start at any tick of its context."""

    @property
    def prefix_trained(self) -> bool:
        """Whether the first rows of a chunk may be given."""

    def act(self, observation: Observation, prefix: npt.NDArray[np.float32] | None = None) -> ActionChunk:
        """As `Policy.act`; `prefix` float32 [k, D]: the first k rows, already decided.

        Raises:
            EdgewamError: no context, beyond its horizon, off its grid: there is no chunk for this tick.
        """

    def start_plan(self, observation: Observation) -> None:
        """Begin a refresh.  Where nothing runs in the background it is done when this returns."""

    def poll_plan(self) -> bool:
        """Whether no refresh is under way, without waiting; one that has just ended is in use from now on."""

    def export_context(self) -> bytes:
        """The context in use, all that `act` reads of it, for a policy made and reset in the same way."""

    def import_context(self, data: bytes) -> None:
        """Use a context from `export_context`; chunks are then bitwise those of the policy that made it."""


def prefix_policy(policy: Policy) -> SplitPolicy:
    """The policy, for real-time chunking.

    Raises:
        EdgewamError: its weights were not trained with prefixes.
    """
    if not isinstance(policy, SplitPolicy) or not policy.prefix_trained:
        raise EdgewamError(
            "Real-time chunking ('rtc') continues the actions under way, and these weights were never trained to: train and "
            "distil with max_prefix, or choose the schedule replace, ensemble or crossfade."
        )
    return policy


def longest_prefix(policy: SplitPolicy) -> int:
    """Rows that may be given: what the policy's training allows (`max_prefix`), or half a chunk where it does not say."""
    return int(getattr(policy, "max_prefix", policy.chunk_size // 2)) if policy.prefix_trained else 0


@runtime_checkable
class Ablatable(Protocol):
    """A policy of which parts can be switched off, to show that they matter."""

    def ablate(self, part: str) -> None:
        """Switch a part off for good (such as 'memory' or 'router'); EdgewamError names the parts when it is unknown."""


def open_policy(factory: str, arguments: Mapping[str, Any], ablate: Sequence[str] = ()) -> Policy:
    """Build a policy from a dotted factory name and plain arguments, with some parts switched off.

    Raises:
        PluginError: no such module or factory, or what it returns is no policy.
    """
    module_name, _, attribute = factory.replace(":", ".").rpartition(".")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ValueError, AttributeError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name and module_name.startswith(error.name)):
            raise  # the module is there, something that it needs is not
        raise PluginError(f"No policy factory '{factory}'. Give package.module.function of something importable.") from error
    policy = make(**arguments)
    if not isinstance(policy, Policy):
        raise PluginError(f"'{factory}' returned {type(policy).__name__}, which lacks reset, infer, plan or act.")
    for part in ablate:
        policy = _without(policy, part)
    return policy


def _without(policy: Policy, part: str) -> Policy:
    if part == IMAGES:
        return BlindPolicy(policy)
    inner = policy.inner if isinstance(policy, BlindPolicy) else policy
    if not isinstance(inner, Ablatable):
        raise EdgewamError(f"This policy cannot run without '{part}'. What every policy can run without: {IMAGES}.")
    inner.ablate(part)
    return policy


class BlindPolicy:
    """Another policy that gets black images: what remains is what it does without looking."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    def reset(self, prompt: str, seed: int) -> None:
        """See `Policy`."""
        self.inner.reset(prompt, seed)

    def infer(self, observation: Observation) -> ActionChunk:
        """See `Policy`."""
        return self.inner.infer(_blacked_out(observation))

    def plan(self, observation: Observation) -> None:
        """See `Policy`."""
        self.inner.plan(_blacked_out(observation))

    def act(self, observation: Observation) -> ActionChunk:
        """See `Policy`."""
        return self.inner.act(_blacked_out(observation))


def _blacked_out(observation: Observation) -> Observation:
    return replace(observation, images={name: np.zeros_like(image) for name, image in observation.images.items()})


class ReplayPolicy:
    """Plays a table of targets by time: rows from `observation.tick` on, the last row for ever.

    `targets_of(seed)` gives float [T, D] at each reset, so that a scripted expert can be driven like a policy.
    """

    def __init__(self, targets_of: Callable[[int], npt.ArrayLike], horizon: int = 16) -> None:
        self._targets_of = targets_of
        self._horizon = horizon
        self._targets: npt.NDArray[np.float32] | None = None

    def reset(self, prompt: str, seed: int) -> None:
        """Fetch the table of this seed; the prompt changes nothing."""
        targets = np.array(self._targets_of(seed), np.float32)
        if targets.ndim != 2 or not len(targets):
            raise EdgewamError(f"Replay targets must have shape [T, D] with T > 0, got {list(targets.shape)}.")
        self._targets = targets

    def plan(self, observation: Observation) -> None:
        """Nothing to refresh."""

    def act(self, observation: Observation) -> ActionChunk:
        """float32 [horizon, D] from the table."""
        if self._targets is None:
            raise EdgewamError("Call reset(prompt, seed) before the first observation.")
        rows = np.minimum(observation.tick + np.arange(self._horizon), len(self._targets) - 1)
        return ActionChunk(self._targets[rows], observation.tick, observation.tick, observation.t_capture_ns)

    def infer(self, observation: Observation) -> ActionChunk:
        """See `act`."""
        return self.act(observation)


def constant_policy(target: Sequence[float], horizon: int = 16) -> Policy:
    """A policy that always asks for one pose [D]: the least a bridge can be tried with."""
    return cast(Policy, ReplayPolicy(lambda seed: [target], horizon))
