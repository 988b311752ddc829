"""How near each fused kernel comes to this card's copy bandwidth, over layers that all have weights of their own.

Calls of one kind (all layers of a stage) are one graph, in the order in which they run; then the products of a denoise step
alone, the whole step, and the same products as torch multiplies them.  Bytes are those of weights and of the stage's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.gpu_clock import capture, gpu_contract, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.kernel_checks import label
from benchmarks.gpu.kernel_choices import Tuner, tuner
from benchmarks.gpu.kernel_formats import in_format
from benchmarks.gpu.kernel_recipes import Lowered, drawn, lowered_stages, memory_bytes, meta_stages, operands
from benchmarks.gpu.precision_rates import bf16_chain, fp8_chain
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section
from edgewam.kernels.bound import bind_call
from edgewam.kernels.call import Call
from edgewam.kernels.choices import key_of
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.measure import Timing
from edgewam.quantize.named import NARROW

Figures = dict[str, float | int | str | bool | None]

# least shares of the copy bandwidth that issue 7 asks for
GATES = {
    ("products", "bf16"): 0.65, ("products", "fp8"): 0.45, ("ask", "bf16"): 0.80, ("whole", "bf16"): 0.55, ("whole", "fp8"): 0.35,
}  # fmt: skip
STEP = "denoise"  # the stage whose products and whole are measured
TORCH_CHAINS = {"bf16": bf16_chain, "fp8": fp8_chain}


class NotMeasuredError(RuntimeError):
    """A stage that was not lowered; the others are recorded."""


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `<stage>_<format>_kernels`, and `.._ask` of a router, `.._products`, `.._whole`, `.._torch_products` of a step."""
    p, tuned = job.params, tuner(device)
    stages = meta_stages(p["size"], getattr(torch, p["dtype"]))
    lowered, refused = lowered_stages({name: stages[name] for name, _ in p["order"]})
    for name, format in p["order"]:
        if name not in lowered:
            continue
        measured = Measured(job, in_format(lowered[name], format), format, tuned, device)
        for section, found in measured.sections():
            emit(f"{name}_{format}_{section}", found)
        del measured
        if device != "cpu":
            torch.cuda.empty_cache()
    if refused:
        raise NotMeasuredError("; ".join(f"{name} is not lowered: {why}" for name, why in refused.items()))


class Measured:
    """A stage in one format whose calls are tuned and bound to random tensors."""

    def __init__(self, job: Job, lowered: Lowered, format: str, tuned: Tuner, device: str) -> None:
        tuned.tune(lowered, job.params["tune_s"])
        tensors = drawn(lowered.with_calls(lowered.ops), device)
        self.p, self.lowered, self.format, self.device, self.tuned = job.params, lowered, format, device, tuned
        self.given = [operands(call, tensors) for call in lowered.ops]
        choices = tuned.choices()
        self.bound = [bind_call(call, g, tuned.target, choices) for call, g in zip(lowered.ops, self.given, strict=True)]

    def sections(self) -> Iterable[tuple[str, Section]]:
        """Everything that is measured of the stage."""
        ask = next((i for i, call in enumerate(self.lowered.ops) if is_ask(call, self.given[i])), None)
        if ask is not None:
            yield "ask", self._gated("ask", [ask])
        yield "kernels", self._kinds()
        if self.lowered.stage.name == STEP:
            products = [i for i, call in enumerate(self.lowered.ops) if call.op == "linear"]
            yield "products", self._gated("products", products)
            yield "whole", self._gated("whole", range(len(self.bound)))
            if self.format in TORCH_CHAINS:
                yield "torch_products", self._torch([self.given[i] for i in products])

    def _kinds(self) -> Section:
        """Every kind of call as a graph of its own."""
        kinds: dict[str, list[int]] = {}
        for index, call in enumerate(self.lowered.ops):
            kinds.setdefault(key_of(call, self.given[index]), []).append(index)
        figures: Figures = {"untuned_kinds": self.tuned.untuned(self.lowered), "tuning_s": self.tuned.spent_s}
        timings: dict[str, Timing] = {}
        for indices in kinds.values():
            first = indices[0]
            kind = numbered(label(self.lowered.ops[first], self.given[first]), timings)
            found, timings[kind] = self._share(indices)
            figures |= {f"{kind} {name}": found[name] for name in ("share", "us_per_call", "calls")}
            figures[f"{kind} runs"] = self.bound[first].why or str(self.bound[first].variant)
        return Section(self._contract("fused kernels, one CUDA graph a kind"), figures, timings)

    def _gated(self, what: str, indices: Sequence[int]) -> Section:
        """Some calls as one graph, with the gate if there is one."""
        figures, timing = self._share(indices)
        if (gate := GATES.get((what, self.format))) is not None:
            figures |= {"gate_share": gate, "gate_passed": float(figures["share"] or 0.0) >= gate}
        return Section(self._contract("fused kernels, one CUDA graph"), figures, {what: timing})

    def _share(self, indices: Sequence[int]) -> tuple[Figures, Timing]:
        calls = [self.bound[index].run for index in indices]

        def together() -> None:
            for call in calls:
                call()

        timing = time_device(capture(together, self.device), self.device, self.p["n"], self.p["warmup"])
        num_bytes = memory_bytes(self.lowered, [self.lowered.ops[index] for index in indices])
        return shares(num_bytes, len(calls), timing, self.device), timing

    def _torch(self, products: Sequence[Mapping[str, Tensor]]) -> Section:
        """The wide products of the step as torch multiplies them, each waiting for the one before."""
        made = self._contract("torch mm chain, CUDA graph")
        weights = [steady(g["weight"]) for g in products if min(g["weight"].shape) >= NARROW]
        x = torch.randn(products[0]["x"].shape[-2], weights[0].shape[1], device=self.device)
        chain: Callable[[], Tensor] = TORCH_CHAINS[self.format](x.to(products[-1]["weight"].dtype), [weights])
        try:
            chain()
        except RuntimeError as error:  # not every device has this product: that is a finding, not a failure of the job
            return Section(made, {"refused": str(error).splitlines()[0][:300]})
        timing = time_device(capture(chain, self.device), self.device, self.p["n"], self.p["warmup"])
        num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
        return Section(made, shares(num_bytes, len(weights), timing, self.device), {"chain": timing})

    def _contract(self, engine: str) -> TimingContract:
        stage = self.lowered.stage
        return gpu_contract(
            self.device, engine=engine, precision=self.format, steps=1, shapes={"rows": (stage.cost.rows,)}, stages=(stage.name,),
            host_copies=False, warmup=self.p["warmup"], n=self.p["n"], clock="cuda_events", notes="random data",
        )  # fmt: skip


def steady(weight: Tensor) -> Tensor:
    """A weight [out, in] whose products keep the size of what they multiply: torch has no scale for FP8 codes."""
    return weight if weight.element_size() > 1 else (weight.bfloat16() * weight.shape[1] ** -0.5).to(weight.dtype)


def shares(num_bytes: int, calls: int, timing: Timing, device: str) -> Figures:
    """Bandwidth, its share of the copy's, and microseconds of a call; timing: of all calls together."""
    gb_s = num_bytes / timing.p50_ms / 1e6
    return {
        "share": gb_s / measured_device(device).bandwidth_gb_s.value, "bandwidth_gb_s": gb_s,
        "us_per_call": timing.p50_ms * 1e3 / calls, "mb": num_bytes / 1e6, "calls": calls,
    }  # fmt: skip


def is_ask(call: Call, given: Mapping[str, Tensor]) -> bool:
    """Whether this is the merged query product of the editor: many layers that read one input."""
    return call.op == "linear" and given["weight"].dim() == 3 and given["x"].dim() == 2


def numbered(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken: kinds may differ in nothing but a dtype."""
    names, number, out = set(taken), 2, name
    while out in names:
        out, number = f"{name} {number}", number + 1
    return out
