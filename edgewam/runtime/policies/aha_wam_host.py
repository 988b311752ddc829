"""Host settings of an AHA-WAM bundle, and the arithmetic of chunks in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.policies.host_section import read_section


@dataclass(frozen=True)
class HostConfig:
    """What the programs' inputs are computed from; see `host_config` of the family.

    offset_trained: chunks may start at any tick, not only every `chunk_size` ticks after a refresh.  prefix_trained:
    the first rows of a chunk may be given, up to max_prefix (None: half a chunk).  refresh_ticks: ticks between
    refreshes.  action_std: of the training data, to express actions in units of it.  composition: where the cameras go on the
    canvas.
    """

    image_height: int
    image_width: int
    state_dim: int
    action_dim: int
    chunk_size: int
    horizon: int
    memory_slots: int
    rope_theta: float
    rope_dims: tuple[int, int, int]
    head_dim: int
    grid: tuple[int, int]
    rope_stride: int
    offset_trained: bool = False
    prefix_trained: bool = False
    max_prefix: int | None = None
    refresh_ticks: int = 32
    action_std: tuple[float, ...] = ()
    composition: str = "three_cameras"

    @staticmethod
    def of(bundle: Bundle) -> HostConfig:
        """Read the host section of a bundle; ContractError when a field is missing."""
        return read_section(bundle, HostConfig)

    def is_due(self, age_ticks: int) -> bool:
        """Whether a chunk that starts so many ticks after the last refresh wants a new one first."""
        on_grid = self.offset_trained or age_ticks % self.chunk_size == 0
        return age_ticks >= self.refresh_ticks or age_ticks + self.chunk_size > self.horizon or not on_grid

    def rows(self, tick: int, context_tick: int) -> npt.NDArray[np.int64]:
        """Rows of a context's horizon that a chunk starting at `tick` consists of: those of its index, by time.

        Raises:
            EdgewamError: a tick before the context, beyond its horizon, or off its grid for weights without offsets.
        """
        age = tick - context_tick
        index = age // self.chunk_size
        if age < 0 or (index + 1) * self.chunk_size > self.horizon:
            raise EdgewamError(
                f"Tick {tick} is {age} ticks after the last refresh; its horizon is {self.horizon}. Refresh (plan) before acting."
            )
        if not self.offset_trained and age % self.chunk_size:
            raise EdgewamError(
                f"These weights were trained without offsets: a chunk must start a multiple of {self.chunk_size} ticks after "
                f"a refresh, not {age}. Refresh (plan) first, or train with offsets."
            )
        return index * self.chunk_size + np.arange(self.chunk_size)
