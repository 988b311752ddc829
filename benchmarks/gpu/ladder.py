"""The paper's Table 8 for this card, cumulative: what each rung takes off the released computation, full size, bf16.

eager           the release step by step (`upstream`)
graph           the same, L_chunk as one CUDA graph
memory_context  text keys and values once per prompt, memory as a ring (`hoisted`); L_chunk as one graph
prefill_compile the refresh as our planner stage, compiled; its image encoder is still the release's
hot_path        the chunk as our stages with every exact rewrite, compiled, one graph; image encoder of the release inside
vae             image encoder in two dimensions, compiled; refresh in graphs too.  This is the best rung

The paper's rungs are its own engines: TensorRT enters with its graph rung, ours stay PyTorch until `prefill_compile`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from benchmarks.gpu.floors import counted, part_floor
from benchmarks.gpu.gpu_clock import capture as graph_of
from benchmarks.gpu.gpu_clock import time_device, time_stages
from benchmarks.gpu.hoisted import HoistedEager
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import CHUNK, STD, Policy, forget_policy, shared_policy
from benchmarks.gpu.program_timing import capture, contract, floor_figures, peak, program_section, relative, reset_peak
from benchmarks.gpu.rates import measured_device
from benchmarks.gpu.released_graph import ReleasedGraph
from benchmarks.gpu.upstream import Mark, UpstreamEager, no_mark
from benchmarks.results import Section
from edgewam.core.stage import Cost
from edgewam.profiles.measure import Timing, measure
from edgewam.runtime.memory import Array

# Actions of a rung against the eager ones, RMS over RMS: rounding of another order in bf16, ten times through 30 layers of
# random weights; a wrong wire gives 1 or more.
SAME_ACTIONS = {"bfloat16": 0.5, "float32": 1e-3}
PARTS = ("vae", "observation", "editor", "words", "denoise")


class RungError(RuntimeError):
    """Some rungs failed; those that did not are recorded."""


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `<rung>_chunk_<steps>` and `<rung>_prefill`; a rung that fails does not keep the next ones from running."""
    policy = shared_policy(job, device)
    if not policy.has_network:
        forget_policy()
        policy = shared_policy(job, device)
    ladder = _Ladder(policy, job, emit)
    failed = []
    for rung in (ladder.eager, ladder.memory_context, ladder.let_go, ladder.prefill_compile, ladder.hot_path, ladder.vae):
        try:
            reset_peak(device)
            rung()
        except Exception as error:  # each rung stands for itself
            traceback.print_exc()
            failed.append(f"{rung.__name__}: {error}")
    if failed:
        raise RungError("; ".join(failed))


class _Ladder:
    def __init__(self, policy: Policy, job: Job, emit: Emit) -> None:
        self._policy, self._p, self._emit = policy, job.params, emit
        self._reference: dict[int, Array] = {}  # normalised actions of the eager rung by steps

    def eager(self) -> None:
        """The release, and its chunk as one graph."""
        upstream = UpstreamEager(*self._policy.network)
        self._fill(upstream)
        costs = self._costs(upstream)
        self._check_count(costs)
        policy, inputs = self._policy, self._policy.inputs
        for steps in self._p["steps"]:

            def chunk(mark: Mark, steps: int = steps) -> Array:
                return upstream.act(inputs.image, inputs.proprio, policy.text, inputs.noise, CHUNK, steps, mark).numpy() * STD

            self._reference[steps] = chunk(no_mark) / STD
            relative(self._reference[steps], self._reference[steps])
            wall, on_device, parts = time_stages(chunk, policy.device, self._p["n_eager"], 3)
            self._released("eager", wall, {"device": on_device, **parts}, costs, steps)
        self._graph("graph", upstream, costs)
        self._refresh("eager", upstream)

    def memory_context(self) -> None:
        """Text and memory held back."""
        hoisted = HoistedEager(*self._policy.network, self._policy.text)
        self._fill(hoisted)
        self._graph("memory_context", hoisted, self._costs(hoisted))
        self._refresh("memory_context", hoisted)

    def let_go(self) -> None:
        """Build our stages; from here on the network is gone."""
        figures = {"rewritten_stages": len(self._policy.stages()), **peak(self._policy.device)}
        self._emit("stages", Section(contract(self._policy, "none", 0, tuple(self._policy.stages()), 1, 0, "built"), figures))

    def prefill_compile(self) -> None:
        """Only the planner is compiled; the refresh runs call by call."""
        policy = self._policy
        others = tuple(name for name in policy.stages() if name not in policy.planner)
        pipeline = policy.pipeline(2, released_image=True, eager=others)
        engines = policy.engines(released_image=True, eager=others)
        section = program_section(
            policy, pipeline, "plan", f"{policy.compiler} planner, call by call", self._p["n"], 3, "image encoder of the release",
            stages=policy.stages(released_image=True), engines=engines,
        )  # fmt: skip
        self._emit("prefill_compile_prefill", section)

    def hot_path(self) -> None:
        """Rewritten stages, compiled, one graph; the image encoder of the release."""
        self._ours("hot_path", released_image=True)

    def vae(self) -> None:
        """The best rung."""
        self._ours("vae", released_image=False)

    def _ours(self, rung: str, released_image: bool) -> None:
        policy = self._policy
        stages, engines = policy.stages(released_image), policy.engines(released_image)
        for steps in self._p["steps"]:
            pipeline = policy.pipeline(steps, released_image)
            actions = pipeline.run("act", policy.act_inputs())["actions"] / STD
            error = self._same(actions, steps)
            found = capture(pipeline, "act", policy.act_inputs())
            section = program_section(
                policy, pipeline, "act", f"{policy.compiler}, one CUDA graph", self._p["n"], 5,
                f"exact rewrites; {'image encoder of the release' if released_image else 'image encoder in 2-D'}",
                found, stages, engines, steps,
            )  # fmt: skip
            figures = {**section.figures, **error, "first_call_s": sum(policy.compile_s.values())}
            self._emit(f"{rung}_chunk_{steps}", Section(section.contract, figures, section.timings))
        if not released_image:
            found = capture(pipeline, "plan", policy.plan_inputs(policy.config.memory_slots))
            section = program_section(
                policy, pipeline, "plan", f"{policy.compiler}, CUDA graphs in groups", self._p["n"], 5, "exact rewrites", found,
                stages, engines,
            )  # fmt: skip
            self._emit(f"{rung}_prefill", section)

    def _graph(self, rung: str, upstream: UpstreamEager, costs: dict[str, Cost]) -> None:
        policy, whole = self._policy, {}
        for steps in self._p["steps"]:
            graph = ReleasedGraph(upstream, policy.text, CHUNK, steps)
            error = self._same(graph(policy.inputs), steps)
            whole[steps] = measure(lambda graph=graph: graph(policy.inputs) * STD, self._p["n"], 3), error  # type: ignore[misc]
        try:
            alone = self._parts_alone(upstream)
        except Exception:  # the figures of the whole must not be lost for its parts
            traceback.print_exc()
            alone = {}
        for steps, (wall, error) in whole.items():
            self._released(rung, wall, alone, costs, steps, error, "one CUDA graph")

    def _parts_alone(self, upstream: UpstreamEager) -> dict[str, Timing]:
        """Device time of each part, each as a graph of its own."""
        policy, device = self._policy, self._policy.device
        image, state = policy.inputs.image.to(device), policy.inputs.proprio.to(device, policy.dtype)
        noise, (timesteps, _) = policy.inputs.noise.to(device, policy.dtype), upstream.table(1)
        with torch.no_grad():
            latent = upstream.encode(image)[:, :, 0]
            queries = upstream.observe(latent)
            routed, words = upstream.model.editor(upstream.context, queries), upstream.words(policy.text, state)
        parts: dict[str, Callable[[], object]] = {
            "vae": lambda: upstream.encode(image),
            "observation": lambda: upstream.observe(latent),
            "editor": lambda: upstream.model.editor(upstream.context, queries),
            "words": lambda: upstream.words(policy.text, state),
            "denoise": lambda: upstream.velocity(noise, timesteps, CHUNK, routed, words),
        }
        with torch.no_grad():
            return {name: time_device(graph_of(part, device), device, self._p["n"], 3) for name, part in parts.items()}

    def _refresh(self, rung: str, upstream: UpstreamEager) -> None:
        policy = self._policy
        ids = iter(range(policy.config.memory_slots, 10**9))

        def refresh(mark: Mark) -> None:
            upstream.refresh(policy.inputs.image, policy.text, policy.frame_id(next(ids)), mark)

        kept = [t for pair in (upstream.memory or []) for t in pair]
        costs = counted(refresh, torch.nn.ModuleList(policy.network), kept)
        wall, on_device, parts = time_stages(refresh, policy.device, self._p["refreshes"], 3)
        floor = part_floor({name: cost for name, cost in costs.items() if name != "upload"}, measured_device(policy.device))
        figures = floor_figures(floor, wall) | peak(policy.device)
        made = contract(policy, "PyTorch eager", 0, tuple(parts), wall.n, 3, f"rung {rung}")
        self._emit(f"{rung}_prefill", Section(made, figures, {"L_prefill": wall, "device": on_device, **parts}))

    def _released(
        self, rung: str, wall: Timing, others: dict[str, Timing], costs: dict[str, Cost], steps: int,
        error: dict[str, float] | None = None, engine: str = "PyTorch eager, as released",
    ) -> None:  # fmt: skip
        policy = self._policy
        floor = part_floor(costs, measured_device(policy.device), steps)
        figures = floor_figures(floor, wall) | {"act_hz": 1e3 / wall.p50_ms, "denoise_gflop": costs["denoise"].flops / 1e9}
        figures |= (error or {}) | peak(policy.device)
        made = contract(policy, engine, steps, PARTS, wall.n, 3, f"rung {rung}")
        self._emit(f"{rung}_chunk_{steps}", Section(made, figures, {"L_chunk": wall, **others}))

    def _fill(self, upstream: UpstreamEager) -> None:
        for number in range(self._policy.config.memory_slots):
            upstream.refresh(self._policy.inputs.image, self._policy.text, self._policy.frame_id(number))

    def _costs(self, upstream: UpstreamEager) -> dict[str, Cost]:
        inputs, text = self._policy.inputs, self._policy.text
        kept = [t for pair in upstream.context for t in pair]
        weights = torch.nn.ModuleList(self._policy.network)
        costs = counted(
            lambda mark: upstream.act(inputs.image, inputs.proprio, text, inputs.noise, CHUNK, 1, mark), weights, kept
        )
        return {name: costs[name] for name in PARTS}

    def _check_count(self, costs: dict[str, Cost]) -> None:
        gflop, expected = costs["denoise"].flops / 1e9, self._p["denoise_gflop"]
        if expected is not None:
            assert abs(gflop / expected - 1) < 0.01, f"one denoise step is {gflop:.1f} GFLOP, the released one {expected}"

    def _same(self, actions: Array, steps: int) -> dict[str, float]:
        if steps not in self._reference:
            return {}
        error = relative(actions, self._reference[steps])
        limit = SAME_ACTIONS[str(self._policy.dtype).removeprefix("torch.")]
        assert error < limit, f"the actions are {error:.2g} away from those of the eager rung, more than {limit}"
        return {"off_eager": error}
