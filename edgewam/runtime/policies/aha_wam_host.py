"""Host settings of an AHA-WAM bundle, and synthetic observations of its sizes for golden vectors and timings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.core.records import Observation
from edgewam.runtime.bundle import Bundle


@dataclass(frozen=True)
class HostConfig:
    """What the programs' inputs are computed from; see `host_config` of the family.

    offset_trained: chunks may start at any tick, not only every `chunk_size` ticks after a refresh.  prefix_trained:
    rows of a chunk may be given.  refresh_ticks: control ticks between planner refreshes.  action_std: of the training
    data, to express actions in units of it.
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
    refresh_ticks: int = 32
    action_std: tuple[float, ...] = ()

    @staticmethod
    def of(bundle: Bundle) -> HostConfig:
        """Read the host section of a bundle; ContractError when a field is missing."""
        names = HostConfig.__dataclass_fields__
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in bundle.host.items() if name in names}
        try:
            return HostConfig(**known)
        except TypeError as error:
            raise ContractError(f"The bundle's host section does not fit an AHA-WAM: {error}. Compile it again.") from error


def synthetic_observation(host: HostConfig, tick: int, seed: int = 0) -> Observation:
    """Smooth random camera images and a random state: not a scene, but of the right sizes and of natural smoothness."""
    rng = np.random.default_rng((seed, tick))
    split, half = host.image_height * 2 // 3, host.image_width // 2
    shapes = {"cam_high": (split, host.image_width), "cam_left_wrist": (host.image_height - split, half)}
    shapes["cam_right_wrist"] = shapes["cam_left_wrist"]
    images = {}
    for name, (height, width) in shapes.items():
        coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        images[name] = np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width])
    state = (0.1 * rng.standard_normal(host.state_dim)).astype(np.float32)
    return Observation(images, state, tick)
