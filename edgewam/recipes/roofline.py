"""`edgewam profile --roofline`: a model's floors on a device, with measurements beside them where there are any.

The model is a bundle (its manifest declares the costs) or the stored full size; the device is a file, or this machine, where a
bundle is then measured too.  Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.profiles.device import Device
    from edgewam.profiles.floor_report import FloorReport, Measured
    from edgewam.profiles.model_costs import ModelCosts
    from edgewam.profiles.plan_costs import Planned

FULL = "aha_wam_full"


def model_of(bundle: Path | None) -> ModelCosts:
    """Costs of a bundle from its manifest, of the full size without one.

    Raises:
        ArtifactError: no bundle there.
    """
    from edgewam.core.artifacts import read_manifest
    from edgewam.profiles.model_costs import of_manifest, read_model

    if bundle is None:
        return read_model(FULL)
    manifest = read_manifest(bundle, kind="bundle", verify=False)  # a floor reads the manifest alone; engines may be gigabytes
    config = manifest.config
    what = f"{config.get('family')} bundle '{bundle}' ({config.get('precision', 'fp32')}, {config.get('backend')})"
    return of_manifest(config, what)


def floors(
    model: ModelCosts, device: Device, plan: str | None, steps: int | None = None, measured: Measured | None = None
) -> FloorReport:
    """Floors of every program.

    Args:
        model: what runs.
        device: where.
        plan: a name, names per stage, or the path of a `plan.json`; None: the model as it is.
        steps: rows of the sampler's table instead of those declared.
        measured: on that device.

    Raises:
        EdgewamError: an unknown plan, or a format that the device lacks.
    """
    from edgewam.profiles.floor_report import FloorReport
    from edgewam.profiles.roofline import fits_cache, roofline

    if steps is not None and not any(model.steps.values()):
        raise EdgewamError(f"{model.title} has no loop, so --steps means nothing. Leave it out.")
    planned = planned_costs(model, plan, device)
    found, cached = {}, []
    for program in model.programs:
        calls = model.calls(program, steps)
        costs = {name: planned.costs[name] for name in calls}
        if fits_cache(costs, device):
            cached.append(program)
        formats = {name: planned.formats[name] for name in calls}
        found[program] = roofline(costs, device, formats, calls, from_memory=program not in cached)
    rows = {name: steps if steps is not None and declared else declared for name, declared in model.steps.items()}
    order = sorted(reversed(found), key=lambda name: -rows[name])  # what runs most often first
    return FloorReport(
        model.title, device, planned.name, planned.text, planned.costs, {name: found[name] for name in order}, rows,
        tuple(cached), measured,
    )  # fmt: skip


def planned_costs(model: ModelCosts, plan: str | None, device: Device) -> Planned:
    """Costs and formats under a plan; see `floors`."""
    from edgewam.profiles import plan_costs

    if plan is None:
        return plan_costs.as_it_is(model, device)
    if plan.endswith(".json"):
        return plan_costs.of_artifact(model, Path(plan), device)
    return plan_costs.named(model, plan, device)


def device_here(threads: int) -> Device:
    """This machine's GPU where a device file knows it, else its processor with rates measured now."""
    from edgewam.profiles.device import find_device
    from edgewam.profiles.machine import read_machine
    from edgewam.recipes.roofline_rates import processor_here

    gpu = read_machine().gpu
    return (find_device(gpu["name"]) if gpu else None) or processor_here(threads)
