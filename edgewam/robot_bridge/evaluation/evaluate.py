"""`edgewam evaluate`: success of a policy over seeds in lockstep, resumable.

Episodes are shared among worker processes that each hold a robot and a policy; which worker plays a seed changes nothing.
"""

from __future__ import annotations

import contextlib
import queue
import statistics as averages
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult, LockstepSettings
from edgewam.robot_bridge.evaluation.results import ResultsFile
from edgewam.robot_bridge.evaluation.statistics import Interval, clopper_pearson, wilson
from edgewam.robot_bridge.evaluation.workers import Worker
from edgewam.robot_bridge.robot import with_task


@dataclass(frozen=True)
class Rate:
    """Successes of n episodes, with Wilson's and Clopper-Pearson's 95 % intervals."""

    successes: int
    n: int
    rate: float
    wilson: Interval
    clopper_pearson: Interval

    @classmethod
    def of(cls, successes: int, n: int) -> Rate:
        """From counts; n > 0."""
        return cls(successes, n, successes / n, wilson(successes, n), clopper_pearson(successes, n))


@dataclass(frozen=True)
class EvaluationReport:
    """strict, success: rates over the seeds.  *_time_s: median time of the episodes that got there, None when none did.

    seam_jerk, inner_jerk: medians over the episodes, see `Smoothness`.  real_time_factor: robot time played by this call over
    the time it took, starting of the workers included; None when every episode was there already.
    """

    config: dict[str, Any]
    strict: Rate
    success: Rate
    mean_reward: float
    median_strict_time_s: float | None
    median_success_time_s: float | None
    seam_jerk: float | None
    inner_jerk: float | None
    held_ticks: int
    episodes: list[EpisodeResult]
    real_time_factor: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def evaluate(
    policy_factory: str,
    policy_args: Mapping[str, Any],
    seeds: Iterable[int],
    *,
    robot: str = "aloha_sim",
    task: str | None = None,
    robot_options: Mapping[str, Any] | None = None,
    settings: LockstepSettings | None = None,
    prompt: str | None = None,
    ablate: Sequence[str] = (),
    identity: Mapping[str, Any] | None = None,
    results: Path | str | None = None,
    workers: int = 2,
    on_episode: Callable[[EpisodeResult, int, int], None] | None = None,
) -> EvaluationReport:
    """Play the episodes of `seeds` that `results` does not hold yet, and judge them all.

    Args:
        policy_factory: dotted name of a function that returns a `Policy`; called as factory(**policy_args) in each worker.
        policy_args: plain data.
        seeds: one episode each; the seed fixes scene and noise.
        robot: a simulator's plugin name or dotted module.
        task: one of the robot's tasks; by default its default one.
        robot_options: further arguments of its `make`.
        settings: ticks per episode and per chunk, declared latency; by default an episode is as long as the task wants it.
        prompt: instruction; by default the task's.
        ablate: parts to do without: 'images' (black), or what the policy offers, such as 'memory' and 'router'.
        identity: what the policy really is, such as the digest of its bundle; a results file of another one is refused.  An
            argument of the same name may differ, such as the bundle's path.
        results: JSONL file to add to; without it nothing is kept.
        workers: processes; each computes with one thread.
        on_episode: called with each new episode, the number done and the number asked for.

    Raises:
        EdgewamError: a worker failed (its message), or the results file is of another configuration.  Episodes that ended
            before are kept.
    """
    seeds = list(dict.fromkeys(int(seed) for seed in seeds))
    if not seeds or workers < 1:
        raise EdgewamError("Give at least one seed and one worker.")
    spec, chosen = with_task(robot, task)
    config = {
        "policy": {"factory": policy_factory, "args": dict(policy_args)},
        "identity": dict(identity or {}),
        "robot": robot,
        "robot_options": {**chosen, **(robot_options or {})},
        "prompt": prompt if prompt is not None else spec.prompts[0],
        "settings": (settings or LockstepSettings(max_ticks=spec.episode_ticks)).to_json(),
        "ablate": list(ablate),
    }
    kept = config | {"policy": {"factory": policy_factory, "args": {**policy_args, **(identity or {})}}}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(ResultsFile(results, kept)) if results is not None else None
        episodes = dict(file.episodes) if file else {}
        todo = [seed for seed in seeds if seed not in episodes]
        began, ticks = time.monotonic(), 0
        played = stack.enter_context(contextlib.closing(_play(config, todo, min(workers, len(todo)))))
        for episode in played:
            episodes[episode.seed] = episode
            ticks += episode.ticks
            if file is not None:
                file.add(episode)
            if on_episode is not None:
                on_episode(episode, sum(seed in episodes for seed in seeds), len(seeds))
        factor = ticks / spec.control_hz / (time.monotonic() - began) if ticks else None
    return replace(summarize(config, [episodes[seed] for seed in sorted(seeds)], spec.control_hz), real_time_factor=factor)


def _play(config: Mapping[str, Any], seeds: Sequence[int], num_workers: int) -> Generator[EpisodeResult]:
    """Episodes in the order in which they end."""
    todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for seed in [*seeds, *[None] * num_workers]:
        todo.put(seed)
    done: queue.Queue[EpisodeResult | Exception] = queue.Queue()

    def serve(worker: Worker) -> None:
        try:
            while (seed := todo.get()) is not None:
                done.put(worker.play(seed))
        except Exception as error:  # handed to the caller's thread, which raises it
            done.put(error)

    with contextlib.ExitStack() as stack:
        for _ in range(num_workers):
            worker = Worker(config)
            thread = threading.Thread(target=serve, args=(worker,), daemon=True)
            for step in (worker.close, thread.join, worker.end):  # called in the opposite order
                stack.callback(step)
            thread.start()
        for _ in seeds:
            episode = done.get()
            if isinstance(episode, Exception):
                raise episode
            yield episode


def summarize(config: Mapping[str, Any], episodes: Sequence[EpisodeResult], control_hz: float) -> EvaluationReport:
    """Judge episodes (at least one)."""

    def median_s(ticks: list[int]) -> float | None:
        return averages.median(ticks) / control_hz if ticks else None

    strict = [e.strict_tick for e in episodes if e.strict_tick is not None]
    success = [e.success_tick for e in episodes if e.success_tick is not None]
    return EvaluationReport(
        config=dict(config),
        strict=Rate.of(len(strict), len(episodes)),
        success=Rate.of(len(success), len(episodes)),
        mean_reward=averages.fmean(e.reward for e in episodes),
        median_strict_time_s=median_s(strict),
        median_success_time_s=median_s(success),
        seam_jerk=median_of(e.seam_jerk for e in episodes),
        inner_jerk=median_of(e.inner_jerk for e in episodes),
        held_ticks=sum(e.held_ticks for e in episodes),
        episodes=list(episodes),
    )


def median_of(values: Iterable[float | None]) -> float | None:
    """Median of the values that are there; None when none is."""
    known = [value for value in values if value is not None]
    return averages.median(known) if known else None
