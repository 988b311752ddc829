"""What a dataset reader needs to know of a dataset on disk, whatever its layout: the one thing a layout module returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.artifacts import MANIFEST, read_manifest
from edgewam.data.schema import Floats


@dataclass(frozen=True)
class Index:
    """Episode e occupies rows starts[e] .. starts[e] + lengths[e] of every vector.

    info: meta/info.json.  lengths, starts, task_index: int64 [num_episodes].  vectors: feature -> float32 [rows, D].
    videos: camera -> (file of each episode, number of each episode's first frame in its file).
    """

    info: Mapping[str, Any]
    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    task_index: npt.NDArray[np.int64]
    tasks: tuple[str, ...]
    vectors: Mapping[str, Floats]
    videos: Mapping[str, tuple[list[Path], list[int]]]

    def digest(self, root: Path) -> str:
        """sha256 that changes with the content: from the manifest, else over metadata, all numbers and the videos' sizes."""
        if (root / MANIFEST).exists():
            return read_manifest(root, kind="dataset", verify=False).digest
        digest = hashlib.sha256((root / "meta/info.json").read_bytes())
        digest.update(json.dumps([self.tasks, self.task_index.tolist(), self.lengths.tolist()]).encode())
        for name in sorted(self.vectors):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.vectors[name]).tobytes())
        for camera in sorted(self.videos):
            files, firsts = self.videos[camera]
            sizes = {path: path.stat().st_size for path in files}
            places = [[path.relative_to(root).as_posix(), sizes[path], first] for path, first in zip(files, firsts, strict=True)]
            digest.update(json.dumps([camera, places]).encode())
        return digest.hexdigest()
