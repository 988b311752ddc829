"""`edgewam train`: a policy (default) or its VAE on a dataset; run again to continue where it stopped.

With a full-size recipe the same command is what torchrun starts on every rank (`_full_size`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewam.cli import _full_size
from edgewam.cli._device import Device
from edgewam.cli._full_size import NumRanks, On, RecipeName, Text, Workers
from edgewam.cli._output import Json, emit, say
from edgewam.cli._plan import DryRun, show_plan
from edgewam.cli._shipped import or_shipped
from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.core.estimate import StepPlan
    from edgewam.training.policy import PolicyTraining
    from edgewam.training.vae import VaeTraining


def command(
    dataset: Annotated[Path, typer.Argument(help="LeRobot v3.0 dataset directory.")],
    out: Annotated[Path, typer.Argument(help="Directory of the policy (or VAE) to write; the running state is OUT.training.")],
    part: Annotated[str, typer.Option(help="What to train: policy, or vae.")] = "policy",
    recipe: RecipeName = "small",
    vae: Annotated[Path | None, typer.Option(help="VAE of the policy; by default the shipped one.")] = None,
    text: Text = None,
    stats: Annotated[
        Path | None, typer.Option(help="dataset_stats.json to normalise by; by default measured on the dataset.")
    ] = None,
    init_from: Annotated[Path | None, typer.Option(help="Go on from these weights, with the rates of a restart.")] = None,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(help="A video DiT (Wan2.2 file or folder), and/or an ActionDiT file, to start planner and executor from."),
    ] = None,
    new_stats: Annotated[
        bool, typer.Option("--new-stats", help="With --init-from: measure states and actions anew, as other tasks need it.")
    ] = False,
    reproduce: Annotated[
        Path | None, typer.Option(help="With --part vae: start from this VAE and keep its latent space.")
    ] = None,
    max_prefix: Annotated[
        int, typer.Option(help="Rows of a chunk that may be given, as the chunk schedule rtc does; 0: none.", min=0)
    ] = 0,
    minutes: Annotated[float | None, typer.Option(help="Training time; by default the recipe's.", min=0.01)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps instead of minutes.", min=1)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes initial weights, data order and noise; by default the recipe's.", min=0)
    ] = None,
    workers: Workers = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default PyTorch's choice.", min=1)] = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
    on: On = None,
    ranks: NumRanks = None,
    as_json: Json = False,
) -> None:
    """Train with a recipe (recipes/). Safe to interrupt; the same command continues, also on another number of ranks."""
    from edgewam.recipes.small import small_cpu
    from edgewam.training.policy import train_policy
    from edgewam.training.vae import VaeTraining, train_vae

    if part not in ("policy", "vae"):
        raise EdgewamError(f"Unknown part '{part}'. Available: policy, vae.")
    if recipe != "small":
        if part != "policy" or new_stats:
            raise EdgewamError("A full-size recipe trains a policy; --part and --new-stats are for the recipe small.")
        return _full_size.train(
            recipe, dataset, out, vae=vae, text=text, stats=stats, init_from=init_from, warm_start=tuple(warm_start or ()),
            max_prefix=max_prefix, minutes=minutes, steps=steps, seed=seed, workers=workers, threads=threads, device=device,
            plan=_full_size.Plan(dry_run, on, ranks), as_json=as_json,
        )  # fmt: skip
    if on or ranks:
        raise EdgewamError("--on and --ranks plan a full-size recipe; the plan of small is timed on this machine.")
    if reproduce and part != "vae":
        raise EdgewamError("--reproduce is for VAEs: add --part vae.")
    if new_stats and (part != "policy" or init_from is None):
        raise EdgewamError("--new-stats is for a policy with --init-from; without it statistics are always measured.")
    if max_prefix and part != "policy":
        raise EdgewamError("--max-prefix is for policies; a VAE has no chunks.")
    small = small_cpu(out.parent)
    from_scratch = small.vae if part == "vae" else small.policy
    defaults = small.refinement if part == "policy" and init_from else from_scratch
    limit = {"minutes": minutes, "steps": steps} if minutes or steps else {}
    loop = replace(defaults.loop, seed=seed or 0, threads=threads, device=device, **limit)
    config = replace(defaults, dataset=dataset, init_from=init_from, loop=loop)
    if isinstance(config, VaeTraining):
        config = replace(config, reproduce=reproduce)
    else:
        config = replace(config, vae=or_shipped(vae, "vae"), latents=None, new_stats=new_stats, max_prefix=max_prefix)
        config = replace(config, text=text or config.text, stats=stats, warm_start=tuple(warm_start or ()))
    if dry_run:
        return show_plan(_plan(config, out), as_json)
    with _full_size.talking(f"train {part}") as (update, _):
        if isinstance(config, VaeTraining):
            measured = train_vae(config, out, progress=update)
        else:
            measured = train_policy(config, out, progress=update)
    if not _full_size.is_main_rank():
        return
    say(f"Wrote {out}. Measured on held-out episodes: {measured}")
    emit(measured, as_json)


def _plan(config: PolicyTraining | VaeTraining, out: Path) -> list[StepPlan]:
    from edgewam.training.estimate_policy import estimate_policy
    from edgewam.training.estimate_vae import estimate_vae
    from edgewam.training.vae import VaeTraining

    return estimate_vae(config, out) if isinstance(config, VaeTraining) else estimate_policy(config, out)
