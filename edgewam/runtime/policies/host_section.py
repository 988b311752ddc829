"""What the hosts of all families share: reading the host section of a bundle, and synthetic observations of its sizes."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.core.observation import composition_named
from edgewam.core.records import Observation
from edgewam.runtime.bundle import Bundle

Section = TypeVar("Section")


class Sizes(Protocol):
    """Of an observation: the canvas in pixels, the cameras on it, and the state."""

    @property
    def image_height(self) -> int: ...
    @property
    def image_width(self) -> int: ...
    @property
    def composition(self) -> str: ...
    @property
    def state_dim(self) -> int: ...


def read_section(bundle: Bundle, kind: type[Section]) -> Section:
    """The host section as the dataclass `kind`, which takes the fields that it knows; ContractError when one is missing."""
    names: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in bundle.host.items() if name in names}
    try:
        return kind(**known)
    except TypeError as error:
        raise ContractError(f"The bundle's host section does not fit '{bundle.policy}': {error}. Compile it again.") from error


def synthetic_observation(sizes: Sizes, tick: int, seed: int = 0) -> Observation:
    """Smooth random camera images and a random state: not a scene, but of the right sizes and of natural smoothness."""
    rng = np.random.default_rng((seed, tick))
    places = composition_named(sizes.composition).places(sizes.image_height, sizes.image_width)
    images = {}
    for name, (rows, columns) in places.items():
        height, width = rows.stop - rows.start, columns.stop - columns.start
        coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        images[name] = np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width])
    state = (0.1 * rng.standard_normal(sizes.state_dim)).astype(np.float32)
    return Observation(images, state, tick)
