"""`train` and `distill` with a full-size recipe: the same command on every rank, of which the first one talks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import emit, say, table, training_progress
from edgewam.cli._plan import megabytes, show_plan
from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.distill.ode import OdeDistillation
    from edgewam.recipes.full_size import PolicyRecipe, StudentRecipe

RecipeName = Annotated[
    str,
    typer.Option("--recipe", help="small, a full-size one such as robotwin_ahawam, or MODULE:FUNCTION (recipes/full_size.py)."),
]
Text = Annotated[
    str | None,
    typer.Option(help="Source of the instructions' embeddings: a cache directory or a text encoder; small without one."),
]
Workers = Annotated[int, typer.Option(help="Processes that read pictures ahead, for each rank.", min=0)]
On = Annotated[
    str | None, typer.Option("--on", help="With --dry-run: the device of every rank, such as h200 (profiles/devices).")
]
NumRanks = Annotated[int | None, typer.Option("--ranks", help="With --dry-run: how many ranks there are going to be.", min=1)]


@dataclass(frozen=True)
class Plan:
    """What was asked about a run instead of the run."""

    dry_run: bool
    on: str | None
    ranks: int | None


def is_main_rank() -> bool:
    """Whether this process is the one that people listen to: not started by torchrun, or its first."""
    return os.environ.get("RANK", "0") == "0"


def train(
    name: str,
    dataset: Path,
    out: Path,
    *,
    vae: Path | None,
    text: str | None,
    stats: Path | None,
    init_from: Path | None,
    warm_start: tuple[Path, ...],
    max_prefix: int,
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    workers: int,
    threads: int | None,
    device: str,
    plan: Plan,
    as_json: bool,
) -> None:
    """`edgewam train` with a full-size recipe."""
    from edgewam.recipes.full_size import Places, PolicyRecipe, find_recipe

    recipe = find_recipe(name)
    if not isinstance(recipe, PolicyRecipe):
        raise EdgewamError(f"'{name}' is a recipe for students: edgewam distill TEACHER DATASET OUT --recipe {name}")
    if seed is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, seed=seed))
    cluster = _cluster(dataset, recipe.start_stride, plan)
    if plan.dry_run:
        return _show(recipe, cluster, dataset, out, steps, plan, as_json)
    if vae is None or text is None:
        missing = " and ".join(option for option, value in (("--vae", vae), ("--text", text)) if value is None)
        raise EdgewamError(f"The recipe {name} needs {missing}: see docs/training.md, or look at its plan with --dry-run.")
    places = Places(dataset=dataset, vae=vae, text=text, stats=stats, init_from=init_from, warm_start=warm_start)
    config = recipe.training(places, cluster, device, steps, workers)
    config = replace(config, max_prefix=max_prefix, loop=replace(config.loop, minutes=minutes, threads=threads))

    from edgewam.training.policy import train_policy

    with talking(f"train {name}") as (update, report):
        measured = train_policy(config, out, progress=update, report=report)
    if is_main_rank():
        say(f"Wrote {out}. Measured on held-out episodes: {measured}")
        emit(measured, as_json)


def distillation(
    name: str,
    teacher: Path,
    dataset: Path,
    out: Path,
    *,
    steps: int | None,
    batches: int | None,
    text: str | None,
    init_from: Path | None,
    workers: int,
    device: str,
    plan: Plan,
    as_json: bool,
) -> OdeDistillation | None:
    """The record of `edgewam distill` with a full-size recipe; None when only its plan was asked for, which is shown."""
    from edgewam.models import checkpoints
    from edgewam.recipes.full_size import StudentRecipe, find_recipe

    recipe = find_recipe(name)
    if not isinstance(recipe, StudentRecipe):
        raise EdgewamError(f"'{name}' is a recipe for policies: edgewam train DATASET OUT --recipe {name}")
    cluster = _cluster(dataset, recipe.teacher.start_stride, plan)
    if plan.dry_run:
        _show(recipe, cluster, dataset, out, steps, plan, as_json)
        return None
    if (found := checkpoints.read(teacher).family) != recipe.teacher.family:
        raise EdgewamError(f"'{teacher}' is of the family '{found}', the recipe {name} is for '{recipe.teacher.family}'.")
    return recipe.distillation(teacher, dataset, cluster, device, steps, batches, text, init_from=init_from, num_workers=workers)


@contextmanager
def talking(what: str) -> Iterator[tuple[Callable[[Any], None] | None, Callable[[str], None] | None]]:
    """(progress, report) of the rank that talks; nothing for the others."""
    if not is_main_rank():
        yield None, None
        return
    with training_progress(what) as update:
        yield update, say


def _cluster(dataset: Path, start_stride: int, plan: Plan) -> Any:
    """Ranks of this run, or of the one that is planned, and windows of an epoch: 0 where a plan's dataset is not there yet."""
    from edgewam.recipes.full_size import Cluster

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if (plan.on or plan.ranks) and not plan.dry_run:
        raise EdgewamError("--on and --ranks belong to --dry-run; torchrun decides how many ranks there really are.")
    ranks = plan.ranks or started
    if plan.dry_run and not dataset.exists():
        return Cluster(ranks, 0)
    from edgewam.data.dataset import Dataset
    from edgewam.training.frames import held_out

    lengths = Dataset.open(dataset).lengths
    trained = lengths[: len(lengths) - held_out(len(lengths))]
    return Cluster(ranks, int((-(-trained // start_stride)).sum()))


def _show(
    recipe: PolicyRecipe | StudentRecipe, cluster: Any, dataset: Path, out: Path, steps: int | None, plan: Plan, as_json: bool
) -> None:
    """The plan of a recipe on stderr and, when asked for, as JSON on stdout."""
    from edgewam.profiles.device import load_device
    from edgewam.recipes.training_estimate import plan_steps

    if not is_main_rank():
        return
    device = None if plan.on is None else load_device(plan.on.removeprefix("nvidia-"))
    full_size, todo = plan_steps(recipe, cluster, dataset, out, steps, device)
    rows = [[part.name, f"{part.parameters:,}", f"{part.trained:,}" if part.trained else "-"] for part in full_size.parts]
    rows.append(["in all", *(f"{sum(getattr(part, n) for part in full_size.parts):,}" for n in ("parameters", "trained"))])
    table("Parameters", ["part", "values", "trained"], rows)
    names = list(dict.fromkeys(name for parts in full_size.memory.values() for name in parts))
    moments = list(full_size.memory)
    held = [[megabytes(parts[name]) if name in parts else "-" for parts in full_size.memory.values()] for name in names]
    rows = [[name, *row] for name, row in zip(names, held, strict=True)]
    rows.append(["in all", *(megabytes(sum(full_size.memory[moment].values())) for moment in moments)])
    table(f"Memory of one of {cluster.ranks} ranks", ["part", *moments], rows)
    for line in full_size.sentences(recipe.recompute, device):
        say(line)
    show_plan(todo, as_json, {"full_size": full_size.to_json(), "ranks": cluster.ranks})
