"""The data behind `edgewam report`: measured in this run, read from manifests and results, or labelled as shipped.

`gather` returns plain JSON; `profiles/html/page.py` makes the page of it.  A part that cannot be made says why.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.recipes.report_road import Found
    from edgewam.runtime.bundle import Bundle


@dataclass(frozen=True)
class ReportSettings:
    """What a report is made of.

    policy: the policy that the bundle was compiled from; by default looked for beside the bundle and among what ships.
    dataset: where frames come from; by default from an episode in the simulator.
    results: folder with what `evaluate` and `run` wrote with --json.
    shipped: the policy that ships; committed: the committed figures (either may be absent).
    task, seed: of the episode; by default the robot's own task.
    frames: of the gates, each costs 8 pairs of chunks on both sides.  n: timed calls of each figure.
    """

    bundle: Path
    policy: Path | None = None
    dataset: Path | None = None
    results: Path | None = None
    shipped: Path = Path("assets")
    committed: Path = Path("benchmarks/results")
    robot: str = "aloha_sim"
    task: str | None = None
    seed: int = 0
    frames: int = 4
    n: int = 100
    threads: int = 2
    command: Sequence[str] = ("edgewam", "report")


def gather(settings: ReportSettings, report: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Everything the page shows.

    Raises:
        EdgewamError: a damaged bundle or results folder; a policy that is not the bundle's.
    """
    from edgewam.core.artifacts import versions
    from edgewam.profiles.machine import read_machine
    from edgewam.recipes.report_results import read_folder
    from edgewam.recipes.report_road import find_artifacts, road
    from edgewam.runtime.bundle import Bundle

    began = time.monotonic()
    bundle = Bundle.open(settings.bundle, threads=settings.threads)
    assert bundle.manifest is not None
    folders = [path for path in (settings.policy, settings.bundle.parent, settings.results, settings.shipped) if path is not None]
    found = find_artifacts([*folders, *([settings.dataset.parent] if settings.dataset else [])])
    results = read_folder(settings.results, bundle.digest) if settings.results else None
    made_of = road(settings.bundle, found, settings.shipped)
    digests = {entry["role"]: entry["digest"] for entry in made_of}
    references = _references(bundle, found, digests, settings)
    report("an episode in the simulator")
    episode = _try(lambda: _episode(bundle, settings), "edgewam doctor")
    film = episode if isinstance(episode, dict) else _try(lambda: _film(episode), "edgewam doctor")
    report("every stage against eager PyTorch, in turns")
    latency, eager = _latency(bundle, references, settings)
    report("the actions against their references")
    _one_torch_thread()
    parity = _try(lambda: _parity(bundle, eager, references, episode, settings), "pip install 'edgewam[train]'")
    machine = read_machine().to_json()
    config = bundle.manifest.config
    data: dict[str, Any] = {
        "format": 1,
        "bundle": {
            "name": _name(settings.bundle), "path": str(settings.bundle), "digest": bundle.digest, "family": bundle.family,
            "backend": bundle.backend, "precision": config.get("precision", "fp32"),
            "num_action_steps": config.get("num_action_steps", 0), "size_bytes": made_of[-1]["size_bytes"],
        },
        "film": film, "road": made_of, "latency": latency, "parity": parity,
        "success": _success(results, digests, settings), "control": _control(results, bundle.digest, settings),
        "notes": [f"Not read from {settings.results}: {name} is no evaluation and no run." for name in results.unread]
        if results else [],
    }  # fmt: skip
    data["commands"] = _commands(data, settings)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data["made"] = {
        "when_utc": when, "versions": versions(), "machine": machine, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return data


def _name(bundle: Path) -> str:
    """The directory's name, or its parent's where it is only called "bundle"."""
    path = bundle.resolve()
    return path.parent.name if path.name == "bundle" else path.name


def _one_torch_thread() -> None:
    """Nothing is timed any more, and threads that wait for each other on a crowded machine take much longer than one."""
    import sys

    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _try(make: Callable[[], Any], command: str) -> Any:
    """What `make` gives, or {reason, command} where this machine cannot."""
    try:
        return make()
    except EdgewamError as error:
        return {"reason": str(error), "command": command}


def _references(bundle: Bundle, found: dict[str, Found], digests: dict[str, str], settings: ReportSettings) -> dict[str, Path]:
    """Policies on this disk that the bundle came from: "student" or "policy" (the same weights), and "teacher"."""
    from edgewam.core.artifacts import read_manifest

    if settings.policy is not None:
        digest = read_manifest(settings.policy).digest
        if digest not in digests.values():
            raise EdgewamError(
                f"'{settings.bundle}' was not made from '{settings.policy}'. Give the policy it came from, one of: "
                f"{', '.join(f'{role} {known[:12]}' for role, known in digests.items() if role != 'bundle')}."
            )
    roles = {role: found[digest].path for role, digest in digests.items() if digest in found and role != "bundle"}
    own = next((role for role in ("student", "policy") if role in roles), None)
    chosen = {own: roles[own]} if own else {}
    return chosen | ({"teacher": roles["teacher"]} if "teacher" in roles else {})


def _episode(bundle: Bundle, settings: ReportSettings) -> Any:
    from edgewam.recipes.report_episode import play

    return play(bundle, settings.robot, settings.task, settings.seed)


def _film(episode: Any) -> dict[str, Any]:
    from edgewam.recipes.report_episode import film_section

    return film_section(episode)


def _latency(bundle: Bundle, references: dict[str, Path], settings: ReportSettings) -> tuple[dict[str, Any], Bundle | None]:
    """The section, and the eager partner with the same weights where there is one."""
    from edgewam.recipes.report_latency import measure_latency
    from edgewam.recipes.validation import eager_partner

    own = next((name for name in references if name != "teacher"), None)
    reason, eager = "", None
    if own is None:
        reason = "No eager bars: the policy that this bundle came from is not at hand. Give it with --policy."
    else:
        steps = bundle.manifest.config.get("num_action_steps") if bundle.manifest else None
        made = _try(lambda: eager_partner(bundle, references[own], steps, settings.threads), "")
        if isinstance(made, dict):
            reason = f"No eager bars: {made['reason']}"
        else:
            eager = made
    sides = {"engine": bundle} | ({"eager": eager} if eager is not None else {})
    return measure_latency(sides, settings.n) | {"eager_reason": reason}, eager


def _parity(
    bundle: Bundle, eager: Bundle | None, references: dict[str, Path], episode: Any, settings: ReportSettings
) -> dict[str, Any]:
    from edgewam.recipes.report_actions import compare
    from edgewam.recipes.validation import eager_partner

    command = f"edgewam report {settings.bundle} --policy POLICY --dataset DATASET"
    if not references:
        return {"reason": "no policy that the bundle came from is at hand", "command": command}
    if isinstance(episode, dict) and settings.dataset is None:
        return {"reason": f"there are no frames: {episode['reason']}", "command": command}
    from edgewam.compile.frames import Frame, dataset_frames

    if settings.dataset is not None:
        from edgewam.data.dataset import Dataset

        frames, origin = dataset_frames(Dataset.open(settings.dataset), settings.frames), f"dataset {settings.dataset}"
    else:
        every = max(1, len(episode.observations) // settings.frames)
        frames = [Frame(observation, episode.prompt) for observation in episode.observations[::every][: settings.frames]]
        origin = f"the policy's own episode of seed {episode.seed}"
    rows = []
    for name, path in references.items():
        if name == "teacher":
            partner = eager_partner(bundle, path, None, threads=1)
            rows.append(compare(bundle, partner, name, frames))
        elif eager is not None:
            rows.append(compare(bundle, eager, name, frames))
    return {"references": rows, "num_frames": len(frames), "frames_from": origin}


def _success(results: Any, digests: dict[str, str], settings: ReportSettings) -> dict[str, Any]:
    from edgewam.recipes.report_results import shipped_comparisons, shipped_evaluations

    comparisons = [*(results.comparisons if results else []), *shipped_comparisons(settings.committed, digests)]
    rows = [*(results.evaluations if results else []), *shipped_evaluations(settings.committed, digests)]
    if not rows:
        command = f"edgewam evaluate {settings.bundle} --seeds 200 --json > RESULTS/evaluate.json"
        return {"reason": "no evaluation of this bundle is at hand", "command": command}
    own = [
        i for i, row in enumerate(rows) if row["policy"].startswith(("this bundle", "student")) and "," not in row["policy"][12:]
    ]
    own = own or [i for i, row in enumerate(rows) if row["policy"].startswith("student")]
    return {"rows": rows, "comparisons": comparisons, "headline": own[0] if own else None}


def _control(results: Any, digest: str, settings: ReportSettings) -> dict[str, Any]:
    from edgewam.recipes.report_results import shipped_run

    found = results.run if results else None
    if found is None and digest == _shipped_digest(settings):  # a committed record says nothing about another bundle
        found = shipped_run(settings.committed)
    command = f"edgewam run {settings.bundle} --seconds 60 --json > RESULTS/run.json"
    return found or {"reason": "no record of a real-time run is at hand", "command": command}


def _shipped_digest(settings: ReportSettings) -> str:
    """Digest of the bundle that ships, or nothing."""
    from edgewam.core.artifacts import read_manifest

    path = settings.shipped / "bundle"
    return read_manifest(path, verify=False).digest if path.is_dir() else ""


def _commands(data: dict[str, Any], settings: ReportSettings) -> list[dict[str, str]]:
    rows = [{"what": "This page: film, latency, parity and action error", "command": shlex.join(settings.command)}]
    if "rows" in data["success"]:
        for command in dict.fromkeys(row["command"] for row in data["success"]["rows"]):
            rows.append({"what": "Success", "command": command})
    if "command" in data["control"] and "reason" not in data["control"]:
        rows.append({"what": "The control loop", "command": data["control"]["command"].replace("BUNDLE", str(settings.bundle))})
    paths = {entry["role"]: entry.get("path") for entry in data["road"]}
    own = paths.get("student") or paths.get("policy")
    if own:
        rows.append({"what": "The bundle", "command": shlex.join(["edgewam", "compile", own, str(settings.bundle)])})
    for part in ("profile", "inspect"):
        rows.append({"what": f"More: {part}", "command": shlex.join(["edgewam", part, str(settings.bundle)])})
    return rows
