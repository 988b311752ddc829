"""Strict success in real time against lockstep at the latency that was measured, on the same seeds.

    python3 -m benchmarks.real_time_success [--seeds 100] [--first-seed 1000] [--task transfer_cube] [--margin 0.10]

The bridge drives aloha_sim in real time through consecutive seeds; its episodes, with chunks and held ticks counted from the log,
make one results file.  Then `evaluate` plays the same seeds in lockstep with the median delay of the chunks, in ticks.  Scene and
noise pair.  Gate: the one-sided 95 % bound of the difference (Tango) is above minus the margin.  A run that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bridge import played
from benchmarks.bridge_figures import Rows, episodes, first_commands, violations
from benchmarks.results import RESULTS, now_utc, slug
from benchmarks.success import show
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.core.artifacts import read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.counting.smoothness import smoothness
from edgewam.robot_bridge.evaluation.compare import compare
from edgewam.robot_bridge.evaluation.evaluate import evaluate
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult, LockstepSettings
from edgewam.robot_bridge.evaluation.results import ResultsFile
from edgewam.robot_bridge.evaluation.statistics import tango_interval
from edgewam.robot_bridge.robot import RobotSpec, with_task
from edgewam.robot_bridge.run import RunSettings

ROBOT = "aloha_sim"
EPISODES_PER_RUN = 25  # what is lost when the benchmark is cut


def results_of(rows: Rows, outcomes: Sequence[dict[str, Any]], spec: RobotSpec) -> list[EpisodeResult]:
    """The finished episodes of one run, in the form of `evaluate`: outcomes from the driver, the rest from the log."""
    by_number = {int(part["episode"][0]): part for part in episodes(rows)}
    found = []
    for number, outcome in enumerate(outcomes):
        part = by_number[number]
        seams = (first_commands(part)["tick"] - int(part["tick"][0])).tolist()
        rough = smoothness(list(part["command"]), seams[1:], spec.max_velocity, spec.control_hz)
        found.append(
            EpisodeResult(
                seed=int(outcome["seed"]),
                ticks=int(outcome["ticks"]),
                reward=int(outcome["reward"]),
                success_tick=outcome["success_tick"],
                strict_tick=int(outcome["ticks"]) if outcome["strict_success"] else None,
                chunks=len(seams),
                held_ticks=int((part["mode"] == Mode.HOLD).sum()),
                **asdict(rough),
            )
        )
    return found


def delays_of(rows: Rows) -> Counter[int]:
    """How many chunks that moved the arm had how many control ticks from their observation to their first command."""
    first = first_commands(rows)
    return Counter((first["tick"] - first["observation_tick"]).tolist())


def median(counts: Counter[int]) -> int:
    """Of counted integers, the lower one of two."""
    below, half = 0, sum(counts.values()) / 2
    for value in sorted(counts):
        below += counts[value]
        if below >= half:
            return value
    raise EdgewamError("No chunk moved the arm, so there is no latency to compare with.")


class Delays:
    """The counts of all runs so far, in a file beside the results."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.counts = Counter({int(ticks): count for ticks, count in kept.items()})

    def add(self, more: Counter[int]) -> None:
        """Add those of one run."""
        self.counts += more
        write_json(self._path, {str(ticks): count for ticks, count in sorted(self.counts.items())})


def play(
    seeds: Sequence[int], task: str, arguments: dict[str, Any], settings: RunSettings, config: dict[str, Any], path: Path
) -> Counter[int]:
    """Play the seeds that the results file lacks, in real time; the delays of all chunks.

    Raises:
        EdgewamError: a run that did not last to its end or broke a limit.
    """
    spec, _ = with_task(ROBOT, task)
    delays = Delays(path.with_suffix(".delays.json"))
    with ResultsFile(path, config) as file, tempfile.TemporaryDirectory(prefix="edgewam_success_") as work:
        while todo := [seed for seed in seeds if seed not in file.episodes]:
            count = next((n for n, seed in enumerate(todo) if seed != todo[0] + n), len(todo))  # without a gap
            # most end early; whoever is cut off at the end is played again
            seconds = (0.75 * min(count, EPISODES_PER_RUN) + 1) * settings.episode_ticks / spec.control_hz
            report, rows = played(
                Path(work), FACTORY, arguments, settings, robot=ROBOT, task=task, seconds=seconds, seed=todo[0]
            )  # fmt: skip
            broken = violations(rows, spec, spec.control_hz)
            if report is None or not report["is_complete"] or broken:
                raise EdgewamError(f"The run from seed {todo[0]} on failed: {broken} violations, {report and report['faults']}.")
            delays.add(delays_of(rows))
            for episode in results_of(rows, report["episodes"], spec):
                if episode.seed in todo:
                    file.add(episode)
            done = sum(seed in file.episodes for seed in seeds)
            show(f"real time {done}/{len(seeds)}", last=True)
    return delays.counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the gate is missed, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.real_time_success", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=1000, help="held out: demonstrations begin at 300001")
    parser.add_argument("--task", default="transfer_cube")
    parser.add_argument("--margin", type=float, default=0.10)
    parser.add_argument("--work", type=Path, default=Path("outputs/real_time_success"))
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    try:
        bundle = shipped("bundle")
        digest = read_manifest(bundle, kind="bundle", verify=False).digest
        spec, options = with_task(ROBOT, a.task)
        settings = RunSettings(episode_ticks=spec.episode_ticks)
        arguments = {"bundle": str(bundle), "threads": 1}
        config = {
            "how": "real time",
            "bundle": digest,
            "robot": ROBOT,
            "robot_options": options,
            "prompt": spec.prompts[0],
            "settings": {"max_ticks": settings.episode_ticks, **asdict(settings)},
        }
        folder = a.work / a.task / digest[:8]
        real = folder / "real_time.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        delays = play(seeds, a.task, arguments, settings, config, real)
        latency = median(delays)
        lockstep = folder / f"lockstep_{latency}.jsonl"
        evaluate(
            FACTORY, arguments, seeds, task=a.task, identity={"bundle": digest}, results=lockstep,
            settings=LockstepSettings(settings.episode_ticks, latency, settings.replan_ticks),
            on_episode=lambda episode, done, total: show(f"lockstep at {latency} ticks {done}/{total}", last=done == total),
        )  # fmt: skip
        pair = compare(real, lockstep, a.margin)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    interval = tango_interval(pair.only_first, pair.only_second, pair.n)
    cpu = read_machine().cpu
    record = {
        "when_utc": now_utc(),
        "task": a.task,
        "bundle": digest,
        "conditions": {"robot": ROBOT, "first_seed": a.first_seed, "seeds": a.seeds, "cpu": cpu, "threads": 1},
        "versions": versions(),
        "replan_ticks": settings.replan_ticks,
        "delay_ticks": {str(ticks): count for ticks, count in sorted(delays.items())},
        "latency_ticks": latency,
        "real_time": asdict(pair.first),
        "lockstep": asdict(pair.second),
        "comparison": pair.to_json(),
        "interval_95": asdict(interval),
    }
    path = (a.out or RESULTS / slug(cpu)) / f"real_time_success_{a.task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    print(
        f"{a.task}, seeds {seeds[0]}-{seeds[-1]}: real time {pair.first.strict.successes}/{pair.n}, lockstep at {latency} ticks "
        f"{pair.second.strict.successes}/{pair.n}; difference {100 * pair.difference:+.1f} points, 95 % interval "
        f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}, one-sided bound {100 * pair.lower_bound:+.1f}: "
        f"{'within' if pair.is_non_inferior else 'NOT shown to be within'} {100 * a.margin:.0f}"
    )
    print(f"Written to {path}")
    return 0 if pair.is_non_inferior else 1


if __name__ == "__main__":
    sys.exit(main())
