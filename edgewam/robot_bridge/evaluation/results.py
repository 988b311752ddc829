"""Evaluation results on disk: one JSON line per episode, appended as it ends, so that a killed evaluation continues.

The first line says what was evaluated; results of something else are never mixed in.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult

FORMAT = 2  # 2: seam_jerk and inner_jerk of every episode


def read_results(path: Path | str) -> tuple[dict[str, Any], dict[int, EpisodeResult]]:
    """The configuration and the episodes by seed.

    Raises:
        ArtifactError: missing, empty, or no results file.
    """
    try:
        config, episodes, _ = _parse(Path(path), Path(path).read_bytes())
    except OSError as error:
        raise ArtifactError(f"Cannot read results '{path}': {error.strerror}. Run edgewam evaluate to make them.") from error
    if config is None:
        raise ArtifactError(f"'{path}' holds no results. Run edgewam evaluate to make them.")
    return config, episodes


def _parse(path: Path, data: bytes) -> tuple[dict[str, Any] | None, dict[int, EpisodeResult], int]:
    """Configuration (None: not even a first line), episodes, and the length of the whole lines."""
    whole = data.rfind(b"\n") + 1  # a kill or a full disk may have cut the last line
    config: dict[str, Any] | None = None
    episodes: dict[int, EpisodeResult] = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            value = json.loads(line)
            if number == 1:
                if value["format"] != FORMAT:
                    raise ArtifactError(
                        f"'{path}' has format {value['format']}; this version reads {FORMAT}. Evaluate again into another file."
                    )
                config = dict(value["config"])
            else:
                episode = EpisodeResult(**value)
                episodes[episode.seed] = episode
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"'{path}', line {number}, is no evaluation result: {error}. Move the file away.") from error
    return config, episodes, whole


class ResultsFile:
    """A results file open for adding episodes; only one process may add to it at a time."""

    def __init__(self, path: Path | str, config: Mapping[str, Any]) -> None:
        """Open or create.

        Raises:
            EdgewamError: it holds results of another configuration, or another evaluation is adding to it.
        """
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(self._path, "a+b")  # noqa: SIM115  closed by __exit__
        try:
            self.episodes = self._open(json.loads(json.dumps(config)))
        except BaseException:
            self._file.close()
            raise

    def _open(self, config: dict[str, Any]) -> dict[int, EpisodeResult]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EdgewamError(f"Another evaluation is writing '{self._path}'. Wait for it or give another file.") from None
        self._file.seek(0)
        found, episodes, whole = _parse(self._path, self._file.read())
        self._file.truncate(whole)
        if found is None:
            self._append({"format": FORMAT, "config": config})
        elif found != config:
            names = sorted(name for name in found.keys() | config.keys() if found.get(name) != config.get(name))
            raise EdgewamError(
                f"'{self._path}' holds results of another configuration (different: {', '.join(names)}). Give another file."
            )
        return episodes

    def add(self, episode: EpisodeResult) -> None:
        """Append one episode and bring it to the disk."""
        self._append(episode.to_json())
        self.episodes[episode.seed] = episode

    def _append(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
