"""Scalars of a training: one JSON line per logged step and, beside it, TensorBoard event files.

A restart cuts both back to the step it starts from, so that a curve never runs through the same step twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import require

LOG = "log.jsonl"


class ScalarLog:
    """Appends to `directory/log.jsonl` and, unless switched off, to `directory/tensorboard/`."""

    def __init__(self, directory: Path, first_step: int, tensorboard: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / LOG
        _cut(self._path, first_step)
        self._events = None
        if tensorboard:
            writer = require("tensorboard.summary.writer.event_file_writer", extra="train")
            self._event = require("tensorboard.compat.proto.event_pb2", extra="train")
            self._summary = require("tensorboard.compat.proto.summary_pb2", extra="train")
            self._events = writer.EventFileWriter(str(directory / "tensorboard"))
            # tells TensorBoard to drop what an interrupted run wrote from this step on
            session = self._event.SessionLog(status=self._event.SessionLog.START)
            self._events.add_event(self._event.Event(wall_time=time.time(), step=first_step, session_log=session))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars of optimiser step `step`."""
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        if self._events is not None:
            values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
            summary = self._summary.Summary(value=values)
            self._events.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flush and stop the TensorBoard writer thread."""
        if self._events is not None:
            self._events.close()


def read_log(directory: Path) -> list[dict[str, float]]:
    """Every logged line of a training, in order."""
    return [json.loads(line) for line in (directory / LOG).read_text().splitlines()]


def _cut(path: Path, first_step: int) -> None:
    """Keep the whole lines of steps before `first_step`; a line cut by a crash is dropped."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    with replaced_file(path) as temporary:
        temporary.write_text("".join(kept))
