"""Sampling whole horizons, and trajectory distillation of the executor: teacher trajectories and the student's loss.

Conditioning is a constant that a family's `condition` computes once, so gradients reach only the action expert (and branch
embedding).  A student predicts the end of the trajectory from an anchor state in one jump.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.flow.prefix import prefix_mask, prefix_timesteps, restore_prefix
from edgewam.flow.schedule import NUM_TRAIN_TIMESTEPS, TableDtype
from edgewam.flow.solver import LinearTable, euler_table, integrate
from edgewam.models.chunks import chunk_text, chunk_velocity
from edgewam.models.dit_block import KeyValue
from edgewam.models.flow_loss import LossBatch, masked_mean
from edgewam.models.wam_model import Wam

TEACHER_STEPS = 16
CAPTURED_STEPS = (0, 1, 2, 4, 8, 12, 16)


@dataclass(frozen=True)
class Conditioning:
    """What executors see: planner keys and values per layer [B*C, S, A] (routed where a family routes), text rows [B, L, Dt],
    state tokens [B, C, Dt]."""

    routed: list[KeyValue]
    context: Tensor
    proprio_tokens: Tensor


@dataclass(frozen=True)
class Prefix:
    """Rows that are decided already: the first `rows` [B, C] of every chunk of `actions` [B, horizon, A], normalised."""

    actions: Tensor
    rows: Tensor

    def mask(self, chunk_size: int) -> Tensor:
        """[B, C, chunk_size] bool."""
        return prefix_mask(self.rows, chunk_size)


@dataclass(frozen=True)
class Trajectory:
    """Sampler states [anchors + 1, B, horizon, A] at `steps` of the teacher's grid, the last being its result.

    `timesteps` [anchors] belong to all states but the last.
    """

    states: Tensor
    timesteps: Tensor
    steps: tuple[int, ...]


def sample_horizon(
    model: Wam, conditioning: Conditioning, noise: Tensor, table: LinearTable, prefix: Prefix | None = None
) -> list[Tensor]:
    """All sampler states [B, horizon, A] of whole horizons, noise first; every chunk of a sample takes the same steps.

    Rows of a prefix are seen clean, at timestep 0, and stay.
    """
    text = chunk_text(model, conditioning.context, conditioning.proprio_tokens)
    chunks = (len(noise), 1, model.config.num_chunks)
    mask = None if prefix is None else prefix.mask(model.config.chunk_size)

    def restored(x: Tensor) -> Tensor:
        return x if prefix is None or mask is None else restore_prefix(x, prefix.actions, mask.flatten(1))

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        times = timestep.expand(chunks)
        if mask is not None:
            times = prefix_timesteps(times, mask[:, None])
        return chunk_velocity(model, restored(x)[:, None], times, conditioning.routed, text)[:, 0]

    return [restored(x) for x in integrate(velocity, noise, table)]


@torch.no_grad()
def teacher_trajectory(
    teacher: Wam,
    conditioning: Conditioning,
    noise: Tensor,
    num_steps: int = TEACHER_STEPS,
    steps: tuple[int, ...] = CAPTURED_STEPS,
    prefix: Prefix | None = None,
    tables: TableDtype = "float32",
) -> Trajectory:
    """Run the teacher from noise [B, horizon, A] and keep its states at `steps` of its own grid.

    `tables`: how its timesteps and deltas are rounded when it acts.

    Raises:
        ValueError: `steps` are not increasing from within the grid to its end.
    """
    if list(steps) != sorted(set(steps)) or steps[0] < 0 or steps[-1] != num_steps:
        raise ValueError(f"Captured steps must increase and end at {num_steps}, got {steps}.")
    table = euler_table(num_steps, teacher.config.shift, tables)
    states = sample_horizon(teacher, conditioning, noise, table, prefix)
    return Trajectory(torch.stack([states[i] for i in steps]), table.timesteps[list(steps[:-1])], tuple(steps))


def draw_anchors(batch: LossBatch, num_anchors: int, generator: torch.Generator) -> Tensor:
    """Anchor index [B, C] for every chunk, uniform over 0 .. num_anchors - 1."""
    drawn = torch.randint(num_anchors, batch.proprio.shape[:2], generator=generator, device=generator.device)
    return drawn.to(batch.proprio.device)


def student_prediction(
    student: Wam, conditioning: Conditioning, trajectory: Trajectory, anchors: Tensor, prefix: Prefix | None = None
) -> Tensor:
    """The student's one-jump guess [B, horizon, A] of the trajectory's end from the anchors [B, C] of its chunks."""
    rows = anchors.repeat_interleave(student.config.chunk_size, 1)[..., None]  # [B, horizon, 1]
    x = trajectory.states.gather(0, rows.expand(1, *trajectory.states.shape[1:]))[0]
    timestep = trajectory.timesteps.to(x.device)[anchors]  # [B, C]
    if prefix is None:
        times, rows_of = timestep, student.config.chunk_size
    else:
        times, rows_of = prefix_timesteps(timestep, prefix.mask(student.config.chunk_size)), 1
    text = chunk_text(student, conditioning.context, conditioning.proprio_tokens)
    velocity = chunk_velocity(student, x[:, None], times[:, None], conditioning.routed, text)[:, 0]
    sigma = times.flatten(1).repeat_interleave(rows_of, 1)[..., None] / NUM_TRAIN_TIMESTEPS
    return x - sigma * velocity


def ode_loss(
    student: Wam,
    conditioning: Conditioning,
    trajectory: Trajectory,
    anchors: Tensor,
    action_is_pad: Tensor,
    huber: float | None = None,
    prefix: Prefix | None = None,
) -> Tensor:
    """Mean squared distance to the teacher's result over actions that are not padding [B, horizon], mean over the batch.

    Rows of a prefix, which the teacher was given too, are not judged.

    With `huber` the distance of a chunk is sqrt(its mean square + huber^2) - huber instead: squared well below `huber`
    (standard deviations of the actions), the root mean square well above it (pseudo-Huber, Song & Dhariwal 2023).
    """
    guess = student_prediction(student, conditioning, trajectory, anchors, prefix)
    ignored = _ignored(action_is_pad, prefix, student.config.chunk_size)
    return _distance(guess, trajectory.states[-1], ignored, student.config.chunk_size, huber)


def rollout_loss(
    student: Wam,
    conditioning: Conditioning,
    trajectory: Trajectory,
    table: LinearTable,
    action_is_pad: Tensor,
    huber: float | None = None,
    prefix: Prefix | None = None,
) -> Tensor:
    """The same distance for the student's own steps of `table` from the trajectory's noise; gradients pass through all of them.

    What deployment does: past its first step a student meets its own states, not the teacher's (facts/performance.md 6.2).
    """
    guess = sample_horizon(student, conditioning, trajectory.states[0], table, prefix)[-1]
    ignored = _ignored(action_is_pad, prefix, student.config.chunk_size)
    return _distance(guess, trajectory.states[-1], ignored, student.config.chunk_size, huber)


def _ignored(action_is_pad: Tensor, prefix: Prefix | None, chunk_size: int) -> Tensor:
    return action_is_pad if prefix is None else action_is_pad | prefix.mask(chunk_size).flatten(1)


def _distance(guess: Tensor, goal: Tensor, ignored: Tensor, chunk_size: int, huber: float | None) -> Tensor:
    error, valid = (guess.float() - goal.float()).pow(2).mean(-1), ~ignored
    if huber is None:
        return masked_mean(error, valid).mean()
    chunks = (-1, chunk_size)
    square = masked_mean(error.unflatten(-1, chunks), valid.unflatten(-1, chunks))
    distance = square / ((square + huber**2).sqrt() + huber)  # = sqrt(square + huber^2) - huber, without the cancellation
    return masked_mean(distance, valid.unflatten(-1, chunks).any(-1)).mean()
