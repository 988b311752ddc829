"""Excess error of the trained student that ships with edgewam, its stages through our kernels, in every weight format.

Whole chunks against the float32 policy (gate 2 of `validate`), on camera canvases of the data file, or without one on smooth
random pictures, which say less; states are drawn around the middle of what the policy was trained on.  Beside it what the kernels
add: against the references of the same calls, which round at the same places.  Weights are rounded to nearest, activation scales
are those of a few of the pictures.  Closed numerics only: no simulator runs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.fused_engines import KeptEngine, ReferenceEngine
from benchmarks.gpu.gpu_clock import gpu_contract
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.kernel_formats import FORMATS, in_format, input_ranges
from benchmarks.gpu.kernel_recipes import Lowered, lowered_stages
from benchmarks.gpu.packed_frames import read_frames
from benchmarks.gpu.vae_parity import smooth_frames
from benchmarks.results import Section
from edgewam.cli._shipped import shipped
from edgewam.compile.excess_error import ExcessError, Sampler, excess_error
from edgewam.compile.plan import CompilePlan
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import target_of
from edgewam.profiles.measure import measure
from edgewam.recipes.deploy import compile_plan
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.backends.fused import FusedEngine, Loaded
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.engine import Engine
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.torch_memory import TorchMemory
from edgewam.training.policy_artifact import load_policy

# Median excess error of issue 7.  Rounding to bf16 alone costs this student 0.04 to 0.08 of its spread, whoever multiplies
# (benchmarks/NOTES.md), so the gate of the kernels is what they add to the same rounding; the distance to float32 and that of
# plain PyTorch in bf16 stand beside it.
GATES = {"bf16": 0.02, "fp8": 0.10}
SPREAD = 0.3  # standard deviations of the drawn states
SEED = 17  # not that of `validate` nor of quantisation


@dataclass(frozen=True)
class Scene:
    """What the policy sees: a canvas uint8 [H, W, 3] and a state [P] in robot units."""

    canvas: npt.NDArray[np.uint8]
    state: npt.NDArray[np.float32]


def run(job: Job, device: str, emit: Emit) -> None:
    """Section `<format>` for each: `excess_median` against float32, `added_median` against the same rounding in PyTorch."""
    p = job.params
    scenes, origin = scenes_of(p)
    plain = {precision: Small(precision, device, p["rewrites"]) for precision in dict.fromkeys(("float32", p["base"]))}
    reference = remembered(plain["float32"].sampler(plain["float32"].eager()))
    small = plain[p["base"]]
    as_it_is = small.sampler(small.eager())
    eager = excess_error(reference, as_it_is, scenes, small.noise_shape, SEED, p["pairs"])
    for format in p["formats"]:
        lowered = small.in_format(format, scenes[: p["calibration"]], p["stages"])
        kernels = small.sampler({**small.eager(), **small.kernels(lowered)})
        alike = remembered(small.sampler({**small.eager(), **small.references(lowered)}))
        ours = remembered(kernels)
        whole, added = (excess_error(x, ours, scenes, small.noise_shape, SEED, p["pairs"]) for x in (reference, alike))
        noise = np.zeros(small.noise_shape, np.float32)
        timing = measure(lambda kernels=kernels, noise=noise: kernels(scenes[0], noise), p["n"], 1)  # type: ignore[misc]
        made = gpu_contract(
            device, engine="fused kernels, call by call", precision=format, steps=2, shapes={"frames": (len(scenes),)},
            stages=tuple(lowered), host_copies=True, warmup=1, n=p["n"], clock="wall", notes=f"frames: {origin}; plan and act",
        )  # fmt: skip
        emit(format, Section(made, figures_of(format, whole, added, eager), {"plan_and_act": timing}))


def figures_of(
    format: str, whole: ExcessError, added: ExcessError, eager: ExcessError
) -> dict[str, float | int | str | bool | None]:
    """Errors and the gate; eager: the base precision in plain PyTorch, against the same float32."""
    figures: dict[str, float | int | str | bool | None] = {
        "excess_median": whole.median, "excess_p99": whole.p99, "added_median": added.median, "added_p99": added.p99,
        "eager_median": eager.median, "eager_p99": eager.p99,
        "frames": len(whole.ratio), "spread_rms_median": float(np.median(whole.spread_rms)),
    }  # fmt: skip
    if format in GATES:
        gate = GATES[format]
        figures |= {"gate_median": gate, "gate_passed": added.median <= gate, "excess_within_gate": whole.median <= gate}
    return figures


class Small:
    """The shipped student in one base precision on a device."""

    def __init__(self, precision: str, device: str, rewrites: bool) -> None:
        self._plan: CompilePlan = compile_plan(shipped("student"), "eager", precision=precision, rewrites=rewrites)
        self._device = device
        for stage in self._plan.stages.values():
            stage.function.to(device)  # type: ignore[union-attr]
        self._opened: Any = None

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(horizon, D)."""
        host = self._plan.host
        return int(host["horizon"]), int(host["action_dim"])

    def eager(self) -> dict[str, Engine]:
        """Every stage as it is."""
        return {name: TorchEngine(stage) for name, stage in self._plan.stages.items()}

    def kernels(self, stages: Mapping[str, Lowered]) -> dict[str, Engine]:
        """Lowered stages through their kernels, with the first variants."""
        target = target_of(self._device)
        choices, memory = Choices.defaults(target), TorchMemory(self._device)
        return {
            name: FusedEngine(lowered.stage, lowered.recipe, Loaded(lowered.weights, lowered.programs, target, choices), memory)
            for name, lowered in stages.items()
        }

    def references(self, stages: Mapping[str, Lowered]) -> dict[str, Engine]:
        """Lowered stages in plain PyTorch."""
        return {name: ReferenceEngine(lowered, self._device) for name, lowered in stages.items()}

    def in_format(self, format: str, scenes: Sequence[Scene], names: Sequence[str]) -> dict[str, Lowered]:
        """The stages of `names`, lowered, in a format; activation scales from whole chunks of `scenes`."""
        stages, refused = lowered_stages({name: self._plan.stages[name] for name in names})
        assert not refused, refused
        kind = FORMATS[format]
        if kind is None or not kind.activations:
            return {name: in_format(lowered, format) for name, lowered in stages.items()}
        kept = {name: KeptEngine(stage) for name, stage in self._plan.stages.items()}
        sample = self.sampler(kept)
        for name in names:
            kept[name].is_recording = True
        rng = np.random.default_rng(SEED)
        for scene in scenes:
            sample(scene, rng.standard_normal(self.noise_shape).astype(np.float32))
        out = {}
        for name, lowered in stages.items():
            ranges = [input_ranges(lowered, seen) for seen in kept[name].seen]
            out[name] = in_format(lowered, format, {weight: max(r[weight] for r in ranges) for weight in ranges[0]})
        return out

    def sampler(self, engines: Mapping[str, Engine]) -> Sampler:
        """Whole chunks in units of the action's std, each the first of an episode."""
        plan = self._plan
        pipeline = Pipeline(plan.programs, plan.stages, engines, TorchMemory(self._device))
        bundle = Bundle(plan.family, "eager", plan.policy, plan.host, plan.stages, engines, pipeline, plan.prompts)
        policy: Any = bundle.open_policy()
        std = np.array(plan.host["action_std"], np.float32)
        prompt = next(iter(plan.prompts))

        def sample(scene: Scene, noise: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
            policy.reset(prompt, 0)
            policy.plan_canvas(scene.canvas, 0, noise)
            return np.asarray(policy.act_canvas(scene.canvas, scene.state, 0) / std)

        return sample


def remembered(sample: Sampler) -> Sampler:
    """The same without computing anything twice."""
    known: dict[tuple[int, bytes], npt.NDArray[Any]] = {}

    def look(scene: Scene, noise: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        key = id(scene), noise.tobytes()
        if key not in known:
            known[key] = sample(scene, noise)
        return known[key]

    return look


def scenes_of(p: Mapping[str, Any]) -> tuple[list[Scene], str]:
    """Canvases evenly from the data file, or smooth random ones, with drawn states; and where they come from."""
    loaded = load_policy(shipped("student"))
    size = (loaded.model.config.image_height, loaded.model.config.image_width)
    frames = read_frames(Path(p["data"])) if "data" in p else smooth_frames(p["frames"], size)
    chosen = frames.images[np.linspace(0, len(frames.images) - 1, p["frames"]).round().astype(int)]
    normal, rng = loaded.stats.state, np.random.default_rng(SEED)
    states = normal.mean + SPREAD * normal.std * rng.standard_normal((len(chosen), len(normal.mean)))
    return [Scene(canvas, state.astype(np.float32)) for canvas, state in zip(chosen, states, strict=True)], frames.origin
