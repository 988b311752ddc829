"""Records that other commands left, for the report: evaluations, real-time runs, and the figures that ship with edgewam.

Files are told apart by what is in them.  One that is none of these is named in the report, never dropped without a word.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import file_digest
from edgewam.core.errors import EdgewamError

_JUDGED = ("strict", "success", "median_strict_time_s", "seam_jerk", "inner_jerk")  # records before the jerk lack it


@dataclass
class Results:
    """evaluations: rows of the success section.  comparisons: of `evaluate --compare`, named by their file.

    run: record of `edgewam run --json`.  unread: files of another kind.
    """

    evaluations: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] | None = None
    unread: list[str] = field(default_factory=list)


def read_folder(folder: Path, bundle: str) -> Results:
    """Read every .json and .jsonl file of a folder.  bundle: digest of the bundle that the report is about.

    Raises:
        EdgewamError: no such folder, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise EdgewamError(f"'{folder}' is no folder. Give the one that holds what evaluate and run wrote with --json.")
    found = Results()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        try:
            record = _evaluation_of(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise EdgewamError(f"Cannot read '{path}': {error}. Move it away, or write it again.") from error
        if not isinstance(record, dict):
            found.unread.append(path.name)
        elif {"config", "strict", "success", "episodes"} <= record.keys():
            found.evaluations.append(evaluation_row(record, bundle))
        elif {"difference", "lower_bound", "margin", "is_non_inferior"} <= record.keys():
            found.comparisons.append({"name": path.stem, **record})
        elif {"control_hz", "lateness_ms", "missed"} <= record.keys():
            if record.get("bundle", bundle) != bundle:
                raise EdgewamError(
                    f"'{path}' is the run of another bundle ({record['bundle'][:12]}). Move it away, or run this one."
                )
            found.run = run_section(record, "this run", path)
        else:
            found.unread.append(path.name)
    return found


def _evaluation_of(path: Path) -> dict[str, Any]:
    """The report of a results file, as `evaluate --json` would print it."""
    from edgewam.core import plugins
    from edgewam.robot_bridge.evaluation.evaluate import summarize
    from edgewam.robot_bridge.evaluation.results import read_results

    config, episodes = read_results(path)
    if not episodes:
        raise EdgewamError(f"'{path}' holds no finished episode yet. Run its evaluation to the end, or move it away.")
    spec = plugins.load("robot", config["robot"]).SPEC
    return summarize(config, [episodes[seed] for seed in sorted(episodes)], spec.control_hz).to_json()


def evaluation_row(record: Mapping[str, Any], bundle: str) -> dict[str, Any]:
    """One row of the success section from what `evaluate --json` prints."""
    config, seeds = record["config"], [episode["seed"] for episode in record["episodes"]]
    digest = str(config.get("identity", {}).get("bundle", ""))
    path = Path(str(config["policy"]["args"].get("bundle", "another policy")))
    without = [f"without {part}" for part in config["ablate"]]
    name = ", ".join(["this bundle" if digest == bundle else path.name, *without])
    settings, task = config["settings"], config["robot_options"].get("task")
    words = ["edgewam", "evaluate", str(path), "--seeds", str(len(seeds)), "--first-seed", str(min(seeds))]
    words += ["--task", task] if task else []
    words += ["--latency-ticks", str(settings["latency_ticks"])] if settings["latency_ticks"] else []
    words += [word for part in config["ablate"] for word in ("--ablate", part)]
    return {
        "policy": name, "task": task or _default_task(config["robot"]), "prompt": config["prompt"],
        "source": f"this run, {digest[:12] or 'digest not recorded'}", "is_shipped": False, "command": shlex.join(words),
        **{name: record.get(name) for name in _JUDGED},
    }  # fmt: skip


def _default_task(robot: str) -> str:
    """What a robot does when no task is named; a robot without tasks is its own name."""
    from edgewam.core import plugins

    return str(getattr(plugins.load("robot", robot), "DEFAULT_TASK", robot))


def shipped_evaluations(folder: Path, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the committed success figures that are about these very weights (role -> digest); others are not shown."""
    rows = []
    for path in sorted(folder.glob("*/success*.json")):
        record = json.loads(path.read_text())
        known, conditions = record["digests"], record["conditions"]
        words = ("--task", record["task"], "--first-seed", conditions["first_seed"], "--seeds", conditions["seeds"])
        command = shlex.join(["python3", "-m", "benchmarks.success", *map(str, words)])
        for name, row in record["policies"].items():
            role = _role(name)
            if known.get(role) not in digests.values():
                continue
            rows.append(
                {"policy": name, "task": record["task"], "prompt": conditions["prompt"],
                 "source": f"shipped, {known[role][:12]}", "is_shipped": True, "command": command,
                 **{key: row.get(key) for key in _JUDGED}}
            )  # fmt: skip
    return rows


def _role(name: str) -> str:
    """Whose weights a row or a comparison of the committed figures is about."""
    return "quantized" if name.startswith("INT8") else "student" if name.startswith("student") else "teacher"


def shipped_comparisons(folder: Path, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Paired comparisons of the committed figures whose first side has these very weights (role -> digest)."""
    rows = []
    for path in sorted(folder.glob("*/success*.json")):
        record = json.loads(path.read_text())
        for name, pair in record["comparisons"].items():
            known = record["digests"][_role(name)]
            if known in digests.values():
                rows.append({"name": f"{name}, {record['task']} (shipped, {known[:12]})", **pair})
    return rows


def shipped_run(folder: Path) -> dict[str, Any] | None:
    """The committed real-time run; it is labelled with the digest of its file, since it names no bundle."""
    paths = sorted(folder.glob("*/run_60s.json"))
    return run_section(json.loads(paths[0].read_text()), "shipped", paths[0]) if paths else None


def run_section(record: Mapping[str, Any], source: str, path: Path) -> dict[str, Any]:
    """The control section from what `edgewam run --json` prints."""
    names = (
        "control_hz", "chunk_hz", "ticks", "missed", "late", "held", "rejected", "seconds", "num_strict_successes",
        "lateness_ms", "engine_ms", "observation_to_command_ms", "is_complete",
    )  # fmt: skip
    digest = str(record.get("bundle", ""))[:12] or f"record {file_digest(path)[:12]}"
    seconds = f"{record['seconds']:g}"
    return {name: record[name] for name in names} | {
        "violations": record["violations"] + record["violations_in_log"],
        "num_episodes": len(record["episodes"]),
        "histograms": record.get("histograms", {}),
        "source": f"{source}, {digest}",
        "command": f"edgewam run BUNDLE --seconds {seconds} --json > {path.name}",
    }
