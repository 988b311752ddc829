"""What a refresh of the AHA-WAM planner leaves for the chunks that follow, and its bytes for another process or device.

Not the rolling memory: that stays with whoever plans.  The bytes are a JSON header and raw arrays; nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError
from edgewam.runtime.memory import Array

_START = struct.Struct("<4sI")  # what it is, length of the JSON header
_MAGIC = b"AWC1"
_MAX_HEADER = 1 << 16
NOISE = "noise"


@dataclass(frozen=True)
class Context:
    """Tick and number of a refresh within its episode, and the noise of its whole horizon, float32 [horizon, D].

    Every chunk of the context starts from rows of this noise, so it can never be written.
    """

    tick: int
    number: int
    noise: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        self.noise.flags.writeable = False


def to_bytes(context: Context, states: Mapping[str, Array], bundle: str) -> bytes:
    """A context with the states (name -> array) that chunks read, made by the bundle of this digest."""
    arrays = {NOISE: context.noise, **states}
    header = {
        "bundle": bundle,
        "tick": context.tick,
        "number": context.number,
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
    }
    text = json.dumps(header).encode()
    return b"".join([_START.pack(_MAGIC, len(text)), text, *(array.tobytes() for array in arrays.values())])


def from_bytes(data: bytes, bundle: str) -> tuple[Context, dict[str, Array]]:
    """Inverse of `to_bytes`.

    Raises:
        ContractError: cut off, something else, or made by another bundle.
    """
    try:
        magic, length = _START.unpack_from(data)
        if magic != _MAGIC or length > _MAX_HEADER:
            raise ValueError("unknown beginning")
        header = json.loads(data[_START.size : _START.size + length])
        arrays, place = {}, _START.size + length
        for name, dtype, shape in header["arrays"]:
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(data, np.dtype(dtype), count, place).reshape(shape)
            place += arrays[name].nbytes
        if place != len(data):
            raise ValueError(f"{len(data)} bytes instead of {place}")
        context = Context(int(header["tick"]), int(header["number"]), arrays.pop(NOISE))
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ContractError(f"This is no planner context of this version: {error}. Plan anew.") from error
    if header["bundle"] != bundle:
        raise ContractError(
            f"This planner context is of bundle {header['bundle'][:8]}, not of {bundle[:8]}. Open the same bundle on both sides."
        )
    return context, arrays
