"""Calibration data: what every stage really sees when the policy walks through recorded episodes.

The programs `prompt`, `plan` and `act` run as on the robot, over every row of the sampler's table, several chunks per context
and with the memory filling up.  A policy drives them, so that no positions, noise or refresh times are made up here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewam.core.errors import ContractError
from edgewam.core.program import Programs
from edgewam.core.records import Observation
from edgewam.core.stage import Stage
from edgewam.data.dataset import Dataset
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.engine import Array, BoundCall

Progress = Callable[[float, float], None]
_CHUNKS_TO_A_STOP = 3


@dataclass(frozen=True)
class Recording:
    """Inputs of every different call of every stage, in the order of the stage's inputs; `digest` identifies their values.

    rows: of a stage that a loop calls, the table row that each call belongs to.
    """

    calls: Mapping[str, Sequence[tuple[Tensor, ...]]]
    num_chunks: int
    digest: str
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)


class RecordingEngine:
    """The eager reference, which keeps a copy of whatever it is given for the first time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[tuple[Tensor, ...]] = []
        self._seen: set[bytes] = set()
        self._inner = TorchEngine(stage)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        """See `Engine.bind`."""
        call = self._inner.bind(inputs, outputs)

        def record() -> None:
            arrays = [inputs[spec.name] for spec in self.stage.inputs]
            key = hashlib.sha1(b"".join(array.tobytes() for array in arrays), usedforsecurity=False).digest()
            if key not in self._seen:  # `plan` and `act` encode the same image
                self._check(arrays)
                self._seen.add(key)
                self.calls.append(tuple(torch.from_numpy(array.copy()) for array in arrays))
            call()

        return record

    def _check(self, arrays: Sequence[Array]) -> None:
        for spec, array in zip(self.stage.inputs, arrays, strict=True):
            # -inf is how an attention bias hides a key; NaN and +inf are no data
            if array.dtype.kind == "f" and (np.isnan(array).any() or (array == np.inf).any()):
                raise ContractError(
                    f"Calibration met values that are not finite: input '{spec.name}' of stage '{self.stage.name}'. "
                    "Look for NaN in the dataset's states, or in the policy's weights."
                )


def check_dataset(dataset: Dataset, state_dim: int, num_episodes: int) -> None:
    """Raise ContractError unless the dataset can calibrate: enough episodes, states finite and of the policy's size."""
    if not 1 <= num_episodes <= dataset.num_episodes:
        raise ContractError(f"'{dataset.path}' has {dataset.num_episodes} episodes; calibration was asked to use {num_episodes}.")
    for episode in chosen_episodes(dataset, num_episodes):
        states = dataset.states(episode)
        if states.shape[1] != state_dim:
            raise ContractError(
                f"'{dataset.path}' has states of {states.shape[1]} numbers, but the policy takes {state_dim}. "
                "Calibrate with recordings of the robot that the policy drives."
            )
        if not np.isfinite(states).all():
            row = int(np.argwhere(~np.isfinite(states))[0, 0])
            raise ContractError(
                f"'{dataset.path}' has a state that is not finite: episode {episode}, control step {row}. "
                "Leave that episode out, or record it again."
            )


def chosen_episodes(dataset: Dataset, count: int) -> list[int]:
    """Episodes spread evenly over the dataset, the same ones every time."""
    return [int(i) for i in np.linspace(0, dataset.num_episodes - 1, count).round()]


def loop_rows(programs: Programs, stage: Stage, calls: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """The row of the loop's tables that each call of a stage was fed from; empty for a stage that no loop calls.

    A call is recognised by the values of its own inputs, so it does not matter who ran the loop, or in which order.
    """
    names = [spec.name for spec in stage.inputs]
    loops = [p.loop for p in programs.programs.values() if p.loop and any(c.stage == stage.name for c in p.loop.calls)]
    for loop in loops:
        wired = next(call for call in loop.calls if call.stage == stage.name).inputs
        tables = {names.index(i): programs.constants[loop.rows[b]] for i, b in wired.items() if b in loop.rows}
        rows = [tuple(table[row].tobytes() for table in tables.values()) for row in range(loop.num_rows)]
        seen = [tuple(call[i].numpy().tobytes() for i in tables) for call in calls]
        if tables and all(key in rows for key in seen):
            return [rows.index(key) for key in seen]
    return []


def record(
    policy: Any,
    programs: Programs,
    engines: Mapping[str, RecordingEngine],
    dataset: Dataset,
    prompts: Sequence[str],
    chunk_ticks: int,
    num_episodes: int,
    progress: Progress | None = None,
) -> Recording:
    """Let a policy act on recorded observations, a chunk every `chunk_ticks`, and keep what its stages saw.

    Args:
        policy: runs `engines`; see `robot_bridge.policy.Policy`.
        programs: that the policy runs.
        engines: by stage.
        dataset: checked by `check_dataset`.
        prompts: that the policy knows; an episode with another task is an error.
        chunk_ticks: control steps between chunks.
        num_episodes: spread over the dataset.
        progress: called with (episodes done, episodes).

    Raises:
        ContractError: an unknown prompt, images of a wrong size, values that are not finite.
    """
    num_chunks = 0
    for done, episode in enumerate(chosen_episodes(dataset, num_episodes)):
        task = dataset.task(episode)
        if task not in prompts:
            raise ContractError(
                f"Episode {episode} of '{dataset.path}' shows '{task}', which the policy has no prompt for: it knows "
                f"{', '.join(map(repr, prompts))}. Calibrate with episodes of its own tasks."
            )
        ticks = list(range(0, int(dataset.lengths[episode]), chunk_ticks))
        images = {camera: dataset.frames(episode, camera, ticks) for camera in dataset.cameras}
        states = dataset.states(episode)
        for index, tick in enumerate(ticks):
            # every second episode is cut up, as when a robot is stopped: an empty memory must not only meet first frames
            if index == 0 or (done % 2 and index % _CHUNKS_TO_A_STOP == 0):
                policy.reset(task, seed=episode + index)
            policy.infer(Observation({name: frames[index] for name, frames in images.items()}, states[tick], tick))
            num_chunks += 1
        if progress:
            progress(done + 1, num_episodes)
    digest = hashlib.sha256()
    for engine in engines.values():
        for call in engine.calls:
            for tensor in call:
                digest.update(tensor.numpy().tobytes())
    rows = {name: loop_rows(programs, engine.stage, engine.calls) for name, engine in engines.items()}
    return Recording({name: engine.calls for name, engine in engines.items()}, num_chunks, digest.hexdigest(), rows)
