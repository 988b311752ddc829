"""Record demonstrations, or episodes of a policy, until a dataset has the asked number.

Safe to kill at any moment; run again to go on.  Episodes gather in `<out>.parts` (`episode_store`); the last one triggers
the writing of the dataset itself, which appears whole.  Seeds are tried in order, so the same call gives the same episodes
however often it was interrupted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import versions
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.demonstrators import open_demonstrator
from edgewam.data.episode_store import EpisodeStore
from edgewam.data.lerobot_v3 import write_dataset
from edgewam.robot_bridge.policy import open_policy

NOISE_RAD = 0.03  # largest execution error of an episode (facts/small_policy.md 3)
MAX_FAILURES_IN_A_ROW = 50  # at the measured keep rate above 0.9 this never happens by chance


@dataclass(frozen=True)
class CollectProgress:
    """Where a collection stands.  `left_s` is None until this run has finished an episode."""

    num_kept: int
    num_dropped: int
    num_wanted: int
    elapsed_s: float
    left_s: float | None


@dataclass(frozen=True)
class CollectReport:
    """What came out: kept and dropped episodes of the whole collection, and how many this run recorded itself."""

    path: Path
    task: str
    style: str
    num_kept: int
    num_dropped: int
    num_recorded_now: int
    elapsed_s: float


@dataclass(frozen=True)
class PolicySource:
    """A policy that acts in the expert's place: its dotted factory, the factory's arguments, and the digest of its bundle."""

    factory: str
    args: Mapping[str, Any]
    digest: str


def collect(
    out: Path | str,
    num_episodes: int,
    first_seed: int,
    style: str | None = None,
    robot: str = "aloha_sim",
    task: str | None = None,
    noise_rad: float = NOISE_RAD,
    policy: PolicySource | None = None,
    progress: Callable[[CollectProgress], None] | None = None,
) -> CollectReport:
    """Record `num_episodes` successful demonstrations into the LeRobot v3.0 dataset `out`.

    Args:
        out: dataset directory; unfinished work lives beside it in `<out>.parts`.
        num_episodes: episodes kept; unsuccessful ones are dropped and counted.
        first_seed: seeds first_seed, first_seed + 1, ... are tried in order.
        style: the demonstrator's style (`plain` or `multimodal` for the scripted experts); by default the task's.
        robot: name of the robot whose demonstrator records.
        task: one of the robot's tasks; by default its default one.
        noise_rad: largest execution error; the recorded actions stay the clean targets.
        policy: acts in the expert's place, without that error; all its episodes are kept, as situations to distil in.
        progress: called after every episode.

    Raises:
        EdgewamError: `out` holds something else, other settings than before, a full disk, or an expert that keeps failing.
    """
    out, began = Path(out), time.monotonic()
    if num_episodes < 1 or first_seed < 0:
        raise EdgewamError(f"Need at least 1 episode and a first seed >= 0, got {num_episodes} and {first_seed}.")
    if policy is not None and style is not None:
        raise EdgewamError("A policy has no style. Leave --style or --policy out.")
    noise_rad = noise_rad if policy is None else 0.0
    opened = None if policy is None else open_policy(policy.factory, policy.args)
    demonstrator = open_demonstrator(robot, task, style, noise_rad, opened)
    task, style = demonstrator.task, demonstrator.style
    settings = {"robot": robot, "task": task, "style": style, "noise_rad": noise_rad, "first_seed": first_seed}
    settings |= {} if policy is None else {"policy": policy.digest}
    parts = out.parent / f"{out.name}.parts"
    try:
        if out.exists():
            return _finished(out, parts, num_episodes, settings)
        store = EpisodeStore(parts, demonstrator.schema, settings)
        with store.locked():
            recorded = _record(store, demonstrator, num_episodes, first_seed, began, progress)
            episodes = store.episodes()[:num_episodes]
            last_seed = episodes[-1].seed
            num_dropped = store.num_dropped(before_seed=last_seed)
            provenance = {**settings, "last_seed": last_seed, "num_dropped": num_dropped, "versions": versions()}
            write_dataset(out, store.schema, episodes, provenance)
            store.remove()
    except OSError as error:
        raise ArtifactError(
            f"Cannot write to '{parts}': {error}. Free some space (0.5 MB per episode, twice) or choose another output, "
            "then run the same command again: complete episodes are kept."
        ) from error
    finally:
        demonstrator.close()
    return CollectReport(out, task, style, num_episodes, num_dropped, recorded, time.monotonic() - began)


def _record(
    store: EpisodeStore,
    demonstrator: Any,
    num_episodes: int,
    first_seed: int,
    began: float,
    progress: Callable[[CollectProgress], None] | None,
) -> int:
    before = recorded = store.num_episodes()
    failures = 0
    while recorded < num_episodes:
        seed = store.next_seed(first_seed)
        episode = demonstrator.record(seed)
        if episode is None:
            store.drop(seed)
            failures += 1
            if failures == MAX_FAILURES_IN_A_ROW:
                raise EdgewamError(
                    f"{failures} demonstrations in a row failed (last seed {seed}). Try less noise or another style."
                )
        else:
            store.add(seed, episode)
            recorded, failures = recorded + 1, 0
        if progress is not None:
            elapsed = time.monotonic() - began
            left = elapsed / (recorded - before) * (num_episodes - recorded) if recorded > before else None
            progress(CollectProgress(recorded, store.num_dropped(), num_episodes, elapsed, left))
    return recorded - before


def _finished(out: Path, parts: Path, num_episodes: int, settings: dict[str, Any]) -> CollectReport:
    """Accept a dataset that this very call has already made; refuse to touch anything else."""
    dataset = Dataset.open(out)
    made = dataset.provenance
    if dataset.num_episodes != num_episodes or any(made.get(key) != value for key, value in settings.items()):
        raise ArtifactError(
            f"'{out}' is already a dataset of {dataset.num_episodes} episodes made with {made or 'unknown settings'}. "
            "Give another output, or delete it first."
        )
    if parts.exists():
        # a kill between the dataset's rename and the removal of the parts: the dataset is complete
        shutil.rmtree(parts)
    return CollectReport(out, settings["task"], settings["style"], num_episodes, made["num_dropped"], 0, 0.0)
