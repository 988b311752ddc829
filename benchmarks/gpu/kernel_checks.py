"""Every kernel at the size that runs, on this card, against its reference: products in float64, the rest in float32.

One section per stage and weight format.  A call that is off by more than its dtype explains fails the job, after all have had
their turn; a call that has no kernel here is named with the reason.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.gpu_clock import gpu_contract, synchronize
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.kernel_formats import PLAIN, in_format
from benchmarks.gpu.kernel_recipes import Lowered, drawn, expected, lowered_stages, meta_stages, operands
from benchmarks.results import Section
from edgewam.kernels.bound import bind_call, kernel_of, split
from edgewam.kernels.call import Call
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.target import Target, target_of
from edgewam.kernels.variant import Variant
from edgewam.profiles.measure import Timing

# RMS of the difference over RMS of the reference.  16 bits: the result is rounded once, and attention rounds turned keys and
# probabilities before that (2 ** -9 each at most); float32: another order of sums over at most 14336 terms
LIMITS = {"bfloat16": 8e-3, "float16": 1e-3, "float32": 1e-5}
CODED_LIMIT = 1.5e-2  # inputs rounded to 8 bits: a value on the edge between two codes may fall to either side


class WrongKernelError(RuntimeError):
    """Some kernels are off or did not run; the others are recorded."""


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `<stage>_<format>`: all calls of the stage, of a packed format those that it changes."""
    p, target = job.params, target_of(device)
    stages = meta_stages(p["size"], getattr(torch, p["dtype"]))
    lowered, refused = lowered_stages({name: stages[name] for name in p["formats"]})
    failed = [f"{name} is not lowered: {why}" for name, why in refused.items()]
    for name, stage in lowered.items():
        for format in p["formats"][name]:
            section, wrong = _stage(in_format(stage, format), format, target, device)
            emit(f"{name}_{format}", section)
            failed += [f"{name} {format} {each}" for each in wrong]
    if failed:
        raise WrongKernelError("; ".join(failed))


def distinct(lowered: Lowered) -> dict[str, Call]:
    """The first call of every kind: op, attributes, shapes and dtypes."""
    tensors, found = lowered.recipe.resolve(lowered.meta()), {}
    for call in lowered.ops:
        found.setdefault(key_of(call, operands(call, tensors)), call)
    return found


def label(call: Call, given: Mapping[str, Tensor]) -> str:
    """A short name: op; layers, rows, inputs and outputs of a product, and what is fused into it."""
    if call.op != "linear":
        return call.op
    weight, x = given["weight"], given["x"]
    batch = f"{weight.shape[0]}x" if weight.dim() == 3 else ""
    fused = [name for name in ("norm", "pairs") if call.attributes.get(name)]
    fused += [role for role in ("shift", "gate", "residual", "delta", "squares") if role in given]
    fused += ["gelu"] if "activation" in call.attributes else []
    return "_".join([f"linear_{batch}{x.shape[-2]}x{x.shape[-1]}x{weight.shape[-2]}", *fused])


def by_source(call: Call, given: Mapping[str, Tensor], target: Target) -> dict[str, Choices]:
    """The first variant of each source that the kernel comes in, by what is put behind the call's name: " cuda", or nothing."""
    kernel, choices = kernel_of(call.op), Choices.defaults(target)
    if kernel is None or kernel.support(call, given, target):
        return {"": choices}
    first: dict[str, Variant] = {}
    for variant in kernel.variants(call, given, target):
        first.setdefault(variant.source, variant)
    key = key_of(call, given)
    return {f" {s}" if s != "triton" else "": replace(choices, by_key={key: variant}) for s, variant in first.items()}


def check(call: Call, given: Mapping[str, Tensor], target: Target, choices: Choices) -> tuple[float, float] | str:
    """How far the kernel of a call is off and how far it may be; or why there is none."""
    wanted = expected(call, given, double=call.op == "linear")  # before the kernel, which may add to its own input
    bound = bind_call(call, given, target, choices)
    if bound.why:
        return bound.why
    bound.run()
    return max(relative_off(given[role], value) for role, value in wanted.items()), limit_of(call, given)


def limit_of(call: Call, given: Mapping[str, Tensor]) -> float:
    """What rounding explains: of what is written, and of what a product reads."""
    rounding = str(call.attributes.get("activations", "none"))
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in split(call, given)[1].values()]
    return max([LIMITS[dtype] for dtype in dtypes] + [LIMITS.get(rounding, 0.0 if rounding == "none" else CODED_LIMIT)])


def relative_off(found: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over RMS of what is wanted, in float64; NaN where the result holds one."""
    difference = found.double() - wanted.double()
    return float(difference.pow(2).mean().sqrt() / wanted.double().pow(2).mean().sqrt())


def _stage(lowered: Lowered, format: str, target: Target, device: str) -> tuple[Section, list[str]]:
    """Section, and what is wrong."""
    figures: dict[str, float | int | str | bool | None] = {}
    wrong, first_ms, worst, kinds = [], [], 0.0, distinct(lowered).values()
    meta = lowered.recipe.resolve(lowered.meta())
    cases = [(call, *case) for call in kinds for case in by_source(call, operands(call, meta), target).items()]
    for call, source, choices in cases:
        if format != PLAIN and "weight_scale" not in call.operands:
            continue
        given = operands(call, drawn(lowered.with_calls([call]), device))
        name, start = label(call, given) + source, time.perf_counter()
        try:
            found = check(call, given, target, choices)
            synchronize(device)
        except Exception as error:  # each kernel stands for itself
            traceback.print_exc()
            found = f"failed: {type(error).__name__}: {error}"
            wrong.append(f"{name} {found}"[:300])
            synchronize(device)  # raises again after an illegal access: nothing behind it could be believed
        first_ms.append((time.perf_counter() - start) * 1e3)
        if isinstance(found, str):
            figures[name] = found[:200]
        else:
            off, limit = found
            is_number = math.isfinite(off)
            figures[name], worst = off if is_number else "not finite", max(worst, off) if is_number else worst
            if not off <= limit:
                wrong.append(f"{name} is off by {off:.2g}, more than {limit:.2g}")
    made = gpu_contract(
        device, engine=f"fused kernels, {target.name}", precision=format, steps=0, shapes={"rows": (lowered.stage.cost.rows,)},
        stages=(lowered.stage.name,), host_copies=False, warmup=0, n=len(first_ms), clock="wall",
        notes="defaults of Triton and CUDA C++, random data; first_call compiles; figures: RMS of error over RMS of reference",
    )  # fmt: skip
    summary = {"worst_off": worst, "within_limits": not wrong, "checks": len(first_ms)}
    return Section(made, summary | figures, {"first_call": Timing.from_samples(first_ms)}), wrong
