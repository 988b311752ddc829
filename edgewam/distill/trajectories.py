"""Teacher trajectories on disk: sampler states at the anchor steps, for batches of training windows.

Running the teacher's sixteen steps costs several times a student step, so it is done once and read often.  Batch i is
drawn from (seed, i) alone, or by what the batches before it found, so only its states need storing; conditioning (routed
keys and values, fifteen times larger) is recomputed, which costs one planner pass.  A cut run goes on with the next batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.distill.focus import Focus, spread
from edgewam.flow.prefix import draw_prefix_rows
from edgewam.flow.schedule import TableDtype
from edgewam.flow.solver import euler_table
from edgewam.models.family import Sizes, sizes, trainable
from edgewam.models.flow_loss import LossBatch
from edgewam.models.flow_ode import CAPTURED_STEPS, TEACHER_STEPS, Prefix
from edgewam.training.ranks import Ranks, join_ranks, one_voice
from edgewam.training.rows_on_disk import allocate, write_rows
from edgewam.training.windows import Source, WindowSource

HEADER, DONE, STATES = "header.json", "done.json", "states.f32"


@dataclass(frozen=True)
class TrajectoryPlan:
    """How many batches of how many contexts, from which seed, and the teacher's grid with the steps that are kept.

    The last `focused` of the batches hold contexts of those before, drawn by how far the teacher's draws lie apart there.
    max_prefix: the teacher goes on from 0..max_prefix given rows of the demonstration, drawn for every chunk; 0: from none.
    """

    num_batches: int = 64
    focused: int = 0
    batch_size: int = 32
    seed: int = 0
    num_steps: int = TEACHER_STEPS
    captured: tuple[int, ...] = CAPTURED_STEPS
    max_prefix: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data; without prefixes as before there were any, so that caches and runs go on."""
        data = asdict(self)
        return data if self.max_prefix else {name: value for name, value in data.items() if name != "max_prefix"}

    def __post_init__(self) -> None:
        if not 0 <= self.focused < self.num_batches:
            raise EdgewamError(
                f"{self.focused} of {self.num_batches} batches cannot be focused: they hold contexts of the others. "
                "Cache more batches, or focus fewer."
            )
        if self.focused and 1 not in self.captured:
            raise EdgewamError(f"Focused batches need the teacher's first step; {self.captured} are kept. Add 1 to captured.")


@dataclass(frozen=True)
class TrajectoryCache:
    """`states` float32 [batches, kept steps, B, horizon, action_dim], first the noise, last the teacher's result."""

    states: npt.NDArray[np.float32]
    plan: TrajectoryPlan
    source: Source
    shift: float  # of the teacher's grid
    tables: TableDtype = "float32"  # how the teacher's timesteps and deltas are rounded

    def batch(self, index: int) -> Tensor:
        """States [kept steps, B, horizon, action_dim] of one batch."""
        return torch.from_numpy(np.array(self.states[index]))

    def choice(self, index: int) -> Any:
        """The windows of batch `index`; of a focused one only after the batches that are not."""
        draws = np.random.default_rng([self.plan.seed, index, 3])
        size = self.plan.batch_size
        even = self.plan.num_batches - self.plan.focused
        return self.source.draw(size, draws, index) if index < even else self._focus.draw(size, draws)

    @cached_property
    def _focus(self) -> Focus:
        even = range(self.plan.num_batches - self.plan.focused)
        first_step = -float(euler_table(self.plan.num_steps, self.shift, self.tables).velocity[0])
        second = self.plan.captured.index(1)
        weights = [spread(states[0], states[second], states[-1], first_step) for states in (self.states[i] for i in even)]
        if not isinstance(self.source, WindowSource):
            raise EdgewamError("Focused batches need cached latents. Distil without frames, or with focused=0.")
        return Focus.of(self.source, [self.choice(i) for i in even], np.concatenate(weights))


def plan_noise(batch: LossBatch, plan: TrajectoryPlan, index: int) -> Tensor:
    """The starting noise [B, horizon, action_dim] of batch `index`."""
    seed = int(np.random.SeedSequence([plan.seed, index, 4]).generate_state(1)[0])
    return torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(seed))


def plan_prefix(batch: LossBatch, plan: TrajectoryPlan, index: int, part: slice) -> Prefix | None:
    """The rows that are given in batch `index`, of the demonstration's own actions; None without prefixes.

    `batch` holds only that `part` of its contexts.
    """
    if not plan.max_prefix:
        return None
    seed = int(np.random.SeedSequence([plan.seed, index, 6]).generate_state(1)[0])
    rows = draw_prefix_rows((plan.batch_size, batch.proprio.shape[1]), plan.max_prefix, torch.Generator().manual_seed(seed))
    return Prefix(batch.actions, rows[part].to(batch.actions.device))


def trajectory_shape(plan: TrajectoryPlan, config: Sizes) -> tuple[int, int, int, int, int]:
    """Of the cached states: batches, kept steps, contexts, horizon, action_dim."""
    return plan.num_batches, len(plan.captured), plan.batch_size, config.horizon, config.action_dim


def batches_done(out: Path) -> int:
    """Batches that a cache directory holds; ArtifactError when its record is damaged."""
    return int(_read(out / DONE)["batches"]) if (out / DONE).exists() else 0


def build_trajectories(
    out: Path | str,
    family: str,
    teacher: nn.Module,
    source: Source,
    identity: Mapping[str, str],
    plan: TrajectoryPlan | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    tables: TableDtype = "float32",
    bfloat16: bool = False,
) -> TrajectoryCache:
    """Roll the teacher out for every batch that the cache directory `out` lacks, and open it.

    Each of several ranks takes its rows of a batch, as in training: the batch of all of them together is more than the memory of
    one holds, at full size a gigabyte a context.  They share the directory.

    Args:
        out: directory; made, continued or only opened.
        family: name of the teacher's family.
        teacher: frozen network.
        source: windows to start from.
        identity: digests of teacher, dataset and VAE.
        plan: what to cache.
        progress: called after every batch with (batches done, batches, seconds left).
        tables: how the teacher's timesteps and deltas are rounded when it acts.
        bfloat16: the teacher's products in that type; states and steps stay float32.

    Raises:
        ArtifactError: `out` was made from something else.
        EdgewamError: the disk is full.
    """
    ranks = join_ranks(str(next(teacher.parameters()).device))
    with one_voice(ranks):
        return _build(Path(out), family, teacher, source, identity, plan or TrajectoryPlan(), ranks, progress, tables, bfloat16)


def _build(
    out: Path,
    family: str,
    teacher: nn.Module,
    source: Source,
    identity: Mapping[str, str],
    plan: TrajectoryPlan,
    ranks: Ranks,
    progress: Callable[[int, int, float], None] | None,
    tables: TableDtype,
    bfloat16: bool,
) -> TrajectoryCache:
    shape = trajectory_shape(plan, sizes(teacher))
    layout = vars(source.layout)
    # only where they are not the usual ones: caches are what they were before there was a choice
    rounded = ({} if tables == "float32" else {"tables": tables}) | ({"products": "bfloat16"} if bfloat16 else {})
    known = {"format": 1, **identity, "plan": plan.to_json(), "shape": shape, "layout": layout, **rounded}
    header = json.loads(json.dumps(known))
    if ranks.is_main:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / HEADER).exists():
            write_json(out / HEADER, header)
    ranks.wait()
    found = _read(out / HEADER)
    if differ := [name for name in {**header, **found} if found.get(name) != header.get(name)]:
        raise ArtifactError(
            f"The trajectories in '{out}' were made with another {' and '.join(differ)}. Use another directory or delete it."
        )
    path = out / STATES
    done = batches_done(out)
    if done < plan.num_batches:
        try:
            _roll_out(out, shape, done, family, teacher, source, plan, ranks, progress, tables, bfloat16)
        except OSError as error:
            raise EdgewamError(
                f"Cannot write trajectories to '{out}': {error}. They need {4 * int(np.prod(shape)) / 1e9:.2f} GB; free some "
                "space and run the same command again: finished batches are kept."
            ) from error
    if not path.exists() or path.stat().st_size != 4 * int(np.prod(shape)):
        raise ArtifactError(f"'{path}' is missing or truncated. Delete '{out}' and distil again.")
    return TrajectoryCache(np.memmap(path, np.float32, "r", shape=shape), plan, source, sizes(teacher).shift, tables)


@torch.inference_mode()
def _roll_out(
    out: Path,
    shape: tuple[int, ...],
    done: int,
    family: str,
    teacher: nn.Module,
    source: Source,
    plan: TrajectoryPlan,
    ranks: Ranks,
    progress: Callable[[int, int, float], None] | None,
    tables: TableDtype,
    bfloat16: bool,
) -> None:
    path = out / STATES
    if ranks.is_main:
        allocate(path, 4 * int(np.prod(shape)), has_rows=done > 0)
    ranks.wait()
    module, device = trainable(family), next(teacher.parameters()).device
    began, even = time.monotonic(), plan.num_batches - plan.focused
    for index in range(done, plan.num_batches):
        if index in (done, even):  # opened again for what looks at all the others, which other machines wrote to
            cache = TrajectoryCache(np.memmap(path, np.float32, "r", shape=shape), plan, source, sizes(teacher).shift, tables)
        choice = cache.choice(index)
        rows = ranks.share.rows(len(choice))
        batch = source.batch(choice.rows(rows.start, rows.stop))
        noise = plan_noise(batch.widened(len(choice)), plan, index)[rows].to(device)
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            conditioning, prefix = module.condition(teacher, batch), plan_prefix(batch, plan, index, rows)
            trajectory = module.teacher_trajectory(teacher, conditioning, noise, plan.num_steps, plan.captured, prefix, tables)
        states = trajectory.states.float().cpu().numpy()
        if not np.isfinite(states).all():
            raise EdgewamError(f"The teacher's actions are not finite in batch {index}. Train the teacher again.")
        first = np.ravel_multi_index((index, 0, rows.start), shape[:3])
        write_rows(path, {int(first) + number * len(choice): state for number, state in enumerate(states)})
        ranks.wait()
        if ranks.is_main:
            write_json(out / DONE, {"batches": index + 1})
            if progress is not None:
                left = (time.monotonic() - began) / (index + 1 - done) * (plan.num_batches - index - 1)
                progress(index + 1, plan.num_batches, left)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Delete '{path.parent}' and distil again.") from error
