"""Which features of a LeRobot dataset are the state, the action and the cameras, and what the cameras are called here.

Names differ from recorder to recorder (`observation.state.default` in RoboTwin's files, `actions` in others).  Rules find the
usual ones; a `KeyMap`, given or stored in the dataset as `meta/edgewam_keys.json`, settles the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.data.schema import ACTION, ENVIRONMENT, IMAGE_PREFIX, STATE

STORED = "meta/edgewam_keys.json"
_STATE_KEYS = (STATE, f"{STATE}.default", "state", "state.default")
_ACTION_KEYS = (ACTION, f"{ACTION}.default", "actions", "actions.default")
# what others call the cameras of our compositions: RoboTwin's simulator, then the LIBERO conversions
_CAMERA_NAMES = {
    "cam_head": "cam_high",
    "head_camera": "cam_high",
    "cam_left": "cam_left_wrist",
    "left_camera": "cam_left_wrist",
    "cam_right": "cam_right_wrist",
    "right_camera": "cam_right_wrist",
    "image": "front",
    "agentview_image": "front",
    "agentview_rgb": "front",
    "image2": "wrist",
    "wrist_image": "wrist",
    "eye_in_hand_image": "wrist",
    "eye_in_hand_rgb": "wrist",
}


@dataclass(frozen=True)
class KeyMap:
    """Feature keys; None or an absent camera is found by rules.  cameras: our camera name -> feature key."""

    state: str | None = None
    action: str | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)

    def save(self, dataset: Path) -> None:
        """Store the map in the dataset, where every later `Dataset.open` finds it."""
        (dataset / STORED).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def stored(dataset: Path) -> KeyMap:
        """The map that the dataset holds, or one that leaves everything to the rules."""
        path = dataset / STORED
        if not path.exists():
            return KeyMap()
        try:
            data = json.loads(path.read_text())
            found = KeyMap(data.get("state"), data.get("action"), dict(data.get("cameras") or {}))
            if not all(isinstance(key, str | None) for key in (found.state, found.action, *found.cameras.values())):
                raise ValueError("a key is no text")
            return found
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ArtifactError(f"Cannot read the key map '{path}': {error}. Write it again or delete it.") from error


@dataclass(frozen=True)
class Keys:
    """A key map in full: vectors (our feature name -> key) and cameras (our camera name -> key)."""

    vectors: Mapping[str, str]
    cameras: Mapping[str, str]

    def features(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Feature entries under our names; vectors get a `shape` of one number and a list of `names`."""
        named = {IMAGE_PREFIX + name: dict(found[key]) for name, key in self.cameras.items()}
        for name, key in self.vectors.items():
            width = width_of(found[key])
            named[name] = {**found[key], "shape": [width], "names": _names(found[key], width)}
        taken = {*self.vectors.values(), *self.cameras.values()}
        return named | {key: dict(entry) for key, entry in found.items() if key not in taken and key not in named}


def resolve(where: Path, features: Mapping[str, Mapping[str, Any]], given: KeyMap) -> Keys:
    """Find state, action and cameras among the feature entries of meta/info.json.

    Raises:
        ArtifactError: one is not there; the message lists what is, and how to name it.
    """
    numbers = {key: width_of(entry) for key, entry in features.items() if str(entry.get("dtype", "")).startswith("float")}
    videos = {key: entry for key, entry in features.items() if entry.get("dtype") == "video" and not _is_depth(entry)}
    vectors = {
        STATE: _vector(where, "state", given.state, _STATE_KEYS, numbers),
        ACTION: _vector(where, "action", given.action, _ACTION_KEYS, numbers),
    }
    if ENVIRONMENT in numbers:
        vectors[ENVIRONMENT] = ENVIRONMENT
    if missing := [key for key in given.cameras.values() if key not in videos]:
        raise ArtifactError(
            f"'{where}' has no video {', '.join(missing)}. Its videos: {', '.join(videos) or 'none'}. Correct the key map."
        )
    cameras = dict(given.cameras)
    for key in videos:
        if key in cameras.values():
            continue
        plain = key.removeprefix(IMAGE_PREFIX) if key.startswith(IMAGE_PREFIX) else key.rsplit(".", 1)[-1]
        name = _CAMERA_NAMES.get(plain, plain)
        cameras[key if name in cameras and plain in cameras else plain if name in cameras else name] = key
    if not cameras and (stills := [key for key, entry in features.items() if entry.get("dtype") == "image"]):
        raise ArtifactError(
            f"'{where}' keeps {', '.join(stills)} as single images in its tables; edgewam reads cameras from mp4 videos. "
            "Convert the dataset to videos with lerobot."
        )
    return Keys(vectors, cameras)


def width_of(entry: Mapping[str, Any]) -> int:
    """Numbers per row of a feature entry; a missing or empty shape is one number."""
    return math.prod(entry.get("shape") or (1,))


def _vector(where: Path, what: str, given: str | None, known: tuple[str, ...], numbers: Mapping[str, int]) -> str:
    wanted = known if given is None else (given,)
    for key in wanted:
        if key in numbers:
            return key
    there = ", ".join(f"{key} ({width})" for key, width in numbers.items() if key != "timestamp") or "none"
    option = f"--{what} KEY"
    raise ArtifactError(
        f"'{where}' has no {what} named {' or '.join(wanted)}. It has the number features: {there}. "
        f"Name the one to use: edgewam data check '{where}' {option} --save-keys"
    )


def _is_depth(entry: Mapping[str, Any]) -> bool:
    info = entry.get("info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _names(entry: Mapping[str, Any], width: int) -> list[str]:
    """Names of the dimensions; LeRobot has them as a list, as {"motors": [...]}, or not at all."""
    found = entry.get("names")
    if isinstance(found, Mapping):
        found = next((value for value in found.values() if isinstance(value, list)), None)
    if isinstance(found, list) and len(found) == width:
        return [str(name) for name in found]
    return [f"dimension_{number}" for number in range(width)]
