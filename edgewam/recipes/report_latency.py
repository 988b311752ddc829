"""Latency for the report: every stage of the bundle against eager PyTorch, in turns in one process, with its floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.core.stage import Stage
    from edgewam.profiles.contract import TimingContract
    from edgewam.profiles.roofline import Roofline
    from edgewam.runtime.bundle import Bundle

Samples = dict[tuple[str, ...], list[float]]
_ORDER = ("act", "plan")  # what runs most often first
BUDGET_S = 25.0  # after this no new round begins: on a crowded machine fewer calls are timed, and `n` says how many
_BLAS_SIZE = 512  # a float32 product that no longer fits the first cache and is large enough for the full rate


def measure_latency(sides: Mapping[str, Bundle], n: int, rounds: int = 5, warmup: int = 10) -> dict[str, Any]:
    """Time the programs and the policy's figures of each side ("engine", perhaps "eager"), block by block in turns.

    Returns:
        programs: per program its rows {stage, calls, engine, eager, floor_ms} (timings of one call) and the totals; figures:
        L_chunk and its like; contract; floor: what it stands on, or the reason that there is none.
    """
    from edgewam.core import plugins
    from edgewam.profiles.measure import Timing
    from edgewam.runtime.bundle import GOLDEN
    from edgewam.runtime.measure import contract_of
    from edgewam.runtime.selftest import load_golden

    engine = sides["engine"]
    assert engine.path is not None and engine.manifest is not None
    inputs = {call.program: call.inputs for call in load_golden(engine.path / GOLDEN, engine.manifest.config["golden"])}
    figures: dict[str, Any] = {}
    samples: Samples = {}
    jobs: list[tuple[str, str, Callable[[], object], Bundle]] = []
    for side, bundle in sides.items():
        if bundle.policy is not None:
            for figure, call in plugins.load("policy", bundle.policy).timed_calls(bundle).items():
                jobs.append((side, figure, call, bundle))
        for program, given in inputs.items():
            jobs.append((side, program, _runner(bundle, program, given), bundle))
    began = time.monotonic()
    for index in range(rounds):
        if index and time.monotonic() - began > BUDGET_S:
            break
        for side, name, call, bundle in jobs:
            _block(samples, side, name, call, bundle, max(1, n // rounds), warmup if index == 0 else 2)
    timed = {key: Timing.from_samples(values).to_json() for key, values in samples.items()}
    programs = []
    floor_text = ""
    for program in sorted(inputs, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)):
        contract = contract_of(engine, program, program, n, warmup)
        floor, floor_text = floor_of(engine, program, contract)
        rows = []
        for stage in dict.fromkeys(key[2] for key in timed if len(key) == 3 and key[:2] == ("engine", program)):
            calls = round(len(samples["engine", program, stage]) / len(samples["engine", program]))
            found = floor.stage(stage) if floor else None
            one: dict[str, Any] = {"stage": stage, "calls": calls, "floor_ms": found.ms if found else None}
            rows.append(_ratios(one | {side: timed.get((side, program, stage)) for side in ("engine", "eager")}))
        totals = {side: timed.get((side, program)) for side in ("engine", "eager")}
        programs.append(_ratios({"name": program, "rows": rows, **totals, "floor_ms": floor.total_ms if floor else None}))
    for name in dict.fromkeys(name for _, name, _, _ in jobs if name not in inputs):
        figures[name] = _ratios({side: timed.get((side, name)) for side in ("engine", "eager")})
    main = "act" if "act" in inputs else next(iter(inputs))
    contract = contract_of(engine, "report", main, len(samples["engine", main]), warmup)
    return {
        "programs": programs, "figures": figures, "floor": floor_text,
        "contract": contract.to_json(), "contract_text": contract.text(),
    }  # fmt: skip


def _ratios(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `speedup` (eager over engine) and `above_floor` (engine over floor), where both sides are known."""
    engine = row["engine"]["p50_ms"]
    speedup = row["eager"]["p50_ms"] / engine if row["eager"] else None
    floor = row.get("floor_ms")
    return row | {"speedup": speedup, "above_floor": engine / floor if floor else None}


def _runner(bundle: Bundle, program: str, given: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: bundle.pipeline.run(program, given)


def _block(samples: Samples, side: str, name: str, call: Callable[[], object], bundle: Bundle, n: int, warmup: int) -> None:
    """n calls as a whole; a program also n times with a look at every stage, call by call in turns."""
    time.sleep(0.02)  # the threads of the other side stop spinning
    for _ in range(warmup):
        call()
    whole = samples.setdefault((side, name), [])

    def look(stage: str, nanoseconds: int) -> None:
        samples.setdefault((side, name, stage), []).append(nanoseconds / 1e6)

    for _ in range(n):
        began = time.perf_counter_ns()
        call()
        whole.append((time.perf_counter_ns() - began) / 1e6)
        if name in bundle.pipeline.programs.programs:
            bundle.pipeline.on_stage = look
            try:
                call()
            finally:
                bundle.pipeline.on_stage = None


def floor_of(bundle: Bundle, program: str, contract: TimingContract) -> tuple[Roofline | None, str]:
    """The floor of a program and what it stands on; (None, reason) where none is known.

    On a device with a file it is its roofline.  For float32 on a processor it is the operations over the matrix rate that
    this processor reaches now: the small policies it can run lie in its caches, so that memory sets no floor.
    """
    from edgewam.profiles.device import find_device
    from edgewam.profiles.roofline import roofline

    counts = {name: bundle.pipeline.programs.programs[program].num_calls(name) for name in bundle.stages}
    chosen = {name: bundle.stages[name] for name, count in counts.items() if count}
    calls = {name: counts[name] for name in chosen}
    if (device := find_device(contract.device)) is not None:
        costs = {name: stage.cost for name, stage in chosen.items()}
        formats = {"fp32": "bf16"}.get(contract.precision, contract.precision)
        return roofline(costs, device, formats, calls), f"roofline of {device.title} ({device.bandwidth_gb_s.source})"
    if contract.precision != "fp32":
        return (
            None,
            f"No floor: there is no device file for {contract.device}, and none can be measured here for {contract.precision}",
        )
    return _measured_floor(chosen, calls, contract)


def _measured_floor(
    stages: Mapping[str, Stage], calls: Mapping[str, int], contract: TimingContract
) -> tuple[Roofline | None, str]:
    from edgewam.profiles.roofline import Roofline, StageFloor

    rate = _rate_here()
    if rate is None:
        return None, f"No floor: there is no device file for {contract.device}, and its matrix rate could not be measured"
    rows = [
        StageFloor(name, calls[name], 0.0, stage.cost.flops / (rate * contract.threads) / 1e6, "fp32")
        for name, stage in stages.items()
    ]
    threads = f"{contract.threads} thread{'s' if contract.threads > 1 else ''}"
    text = (
        f"Floor: operations over {rate:.0f} GFLOP/s per thread, the float32 matrix rate measured in this run on "
        f"{contract.device} ({threads}); the weights lie in its caches, so memory is left out"
    )
    return Roofline(f"{contract.device} (measured)", tuple(rows)), text


_rates: list[float] = []


def _rate_here() -> float | None:
    """Best float32 matrix rate of one thread in GFLOP/s, measured once per process in a child whose NumPy has one thread."""
    from edgewam.profiles.probe import Probe, run_probes

    if not _rates:
        answer = run_probes([Probe("rate", f"{__name__}.matrix_rate", {}, {"OPENBLAS_NUM_THREADS": "1"})], 20.0)["rate"]
        if not answer.ok:
            return None
        _rates.append(float(answer.value))
    return _rates[0]


def matrix_rate() -> float:
    """GFLOP/s of the fastest of many float32 products; called in a child."""
    import numpy as np

    a = np.ones((_BLAS_SIZE, _BLAS_SIZE), np.float32)
    out = np.empty_like(a)
    best = float("inf")
    for _ in range(60):
        began = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - began)
    return 2 * _BLAS_SIZE**3 / best / 1e9
