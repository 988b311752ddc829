"""Measurements for the column beside the floors: read from a file, or taken now from a bundle on this machine.

A file is what `edgewam profile --json` printed, or a record under `benchmarks/results`.  What was measured elsewhere, or with
other steps or precision than the floor is for, is refused: the ratio would compare two different things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.profiles.contract import TimingContract
    from edgewam.profiles.device import Device
    from edgewam.profiles.floor_report import Measured
    from edgewam.profiles.model_costs import ModelCosts

_FIGURES = {"L_chunk": "act", "L_prefill": "plan"}  # DESIGN section 7: what these figures run


def read_measured(path: Path, model: ModelCosts, device: Device, precision: str | None, steps: int | None) -> Measured:
    """Medians of a file for the programs of a model.

    Args:
        path: see the module.
        model: its programs and steps are looked for.
        device: where the floor is.
        precision: of the floor's plan, such as "bf16"; None does not ask.
        steps: of the floor's sampler, None as the model declares.

    Raises:
        EdgewamError: no such file, another device, another precision, or nothing in it that fits.
    """
    from edgewam.profiles.contract import TimingContract
    from edgewam.profiles.floor_report import Measured

    stages: dict[tuple[str, str], float] = {}
    programs: dict[str, float] = {}
    used: dict[str, TimingContract] = {}
    refused: dict[str, str] = {}
    for name, contract_data, timings in _entries(path):
        contract = TimingContract.from_json(contract_data)
        require_device(contract, device, path)
        if precision is not None and contract.precision != precision:
            refused[name] = f"is {contract.precision}, the plan {precision}"
            continue
        for program in model.programs:
            calls = model.calls(program, steps)
            rows = model.steps[program] if steps is None or not model.steps[program] else steps
            total = timings.get(f"program {program}", timings.get(next((f for f, p in _FIGURES.items() if p == program), "")))
            own = {stage: timings[stage] for stage in calls if stage in timings and not _is_other(name, program, model)}
            if total is None and not own:
                continue
            if contract.steps != rows:
                refused[name] = f"has {contract.steps} steps, the floor {rows}"
                continue
            new = {(program, stage): ms for stage, ms in own.items() if (program, stage) not in stages}
            if new or (total is not None and program not in programs):
                used[name] = contract
            stages |= new  # the first section that has a number gives it, and is named
            if total is not None:
                programs.setdefault(program, total)
    if not used:
        reasons = "; ".join(f"'{name}' {reason}" for name, reason in refused.items()) or "it has none of its stages"
        raise EdgewamError(f"Nothing in '{path}' was measured on what the floor is for: {reasons}.")
    how = ", ".join(dict.fromkeys(f"{c.engine} {c.precision} with {c.threads} threads on {c.device}" for c in used.values()))
    return Measured(f"{', '.join(used)} in '{path}' ({how})", stages, programs, used)


def measure_here(path: Path, n: int, warmup: int, threads: int) -> tuple[Device, Measured]:
    """The device that a bundle runs on here, and medians of every program and stage, measured now.

    Raises:
        EdgewamError: it cannot run here, or runs on a card without a device file.
    """
    from edgewam.core.errors import ArtifactError, PluginError
    from edgewam.profiles.device import find_device
    from edgewam.profiles.floor_report import Measured
    from edgewam.recipes.roofline_rates import processor_here
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.measure import profile_bundle

    try:
        bundle = Bundle.open(path, threads=threads)
    except (PluginError, ArtifactError) as error:
        raise EdgewamError(f"{error} Its floors need no run: name a device with --device.") from error
    profiles = profile_bundle(bundle, n=n, warmup=warmup, programs=list(bundle.pipeline.programs.programs))
    contract = next(iter(profiles.values())).contract
    device = processor_here(threads) if _is_processor(contract) else find_device(contract.device)
    if device is None:
        raise EdgewamError(f"{contract.device} has no device file, so it has no floor. Add one, see CONTRIBUTING.md.")
    stages = {(name, stage): t.p50_ms for name, profile in profiles.items() for stage, t in profile.stages.items()}
    totals = {name: profile.total.p50_ms for name, profile in profiles.items()}
    source = f"here and now, medians of {n} runs ({contract.engine}, {contract.threads} threads)"
    return device, Measured(source, stages, totals, {name: profile.contract for name, profile in profiles.items()})


def device_of(path: Path) -> str:
    """Name of the device that fits a measurement; of a processor the variant that was measured on one of its name, if any.

    Raises:
        EdgewamError: no file, or a card without a device file.
    """
    from edgewam.profiles.contract import TimingContract
    from edgewam.profiles.device import device_names, find_device, load_device

    contract = TimingContract.from_json(_entries(path)[0][1])
    if _is_processor(contract):
        label = "-".join(contract.device.lower().split())
        return f"cpu:{label}" if label in load_device("cpu").variants else "cpu"
    if (device := find_device(contract.device)) is None:
        raise EdgewamError(
            f"'{path}' was measured on {contract.device}, which has no device file. Available: {', '.join(device_names())}."
        )
    return device.name


def require_device(contract: TimingContract, device: Device, path: Path) -> None:
    """Raise EdgewamError unless a measurement was taken on this kind of device."""
    fits = contract.device in device.gpu_names if device.sm else _is_processor(contract)
    if not fits:
        raise EdgewamError(
            f"'{path}' was measured on {contract.device}, the floor is that of {device.title}. Give the file of that device, or "
            "leave --device out: the measurement names its own."
        )


def _is_processor(contract: TimingContract) -> bool:
    return contract.device == contract.machine.get("cpu")


def _is_other(name: str, program: str, model: ModelCosts) -> bool:
    """Whether a profile is that of another program: the image encoder runs in two of them."""
    return name in model.programs and name != program


def _entries(path: Path) -> list[tuple[str, Mapping[str, Any], dict[str, float]]]:
    """(name, contract, medians by stage, figure or "program <name>") of every part of a file."""
    try:
        data = json.loads(path.read_text())
        if "sections" in data:
            parts = data["sections"].items()
            return [(n, part["contract"], {k: t["p50_ms"] for k, t in part["timings"].items()}) for n, part in parts]
        found = []
        for name, part in data.items():
            stages = {stage: row["p50_ms"] for stage, row in part["stages"].items()}
            found.append((name, part["contract"], {**stages, f"program {name}": part["total"]["p50_ms"]}))
        if found:
            return found
        raise KeyError("it is empty")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgewamError(
            f"'{path}' is neither the output of 'edgewam profile --json' nor a record of benchmarks/results: {error!r}."
        ) from error
