"""Judges quantised layers while they are being chosen: whole chunks against float32, on frames of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.compile.plan import CompilePlan
    from edgewam.quantize.layers import LayerName

PAIRS = 2  # of noises per frame
# behind the error of a single layer: enough to rank them, and every layer is measured in every format.  The median of eight
# frames was seen from 0.02 to 0.07 where that of 64 was 0.03, so all together are judged on more.
LAYER_FRAMES = 8
_FRAME_SEED = 11  # not that of `validate`: the choice of layers must not be made on the frames that judge it

Report = Callable[[str, float, float], None]  # what is going on, done, of how much


def eager_policy(source: CompilePlan, engines: Mapping[str, Any]) -> Any:
    """The policy of a compile plan over engines of its stages, nothing written."""
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.pipeline import Pipeline

    pipeline = Pipeline(source.programs, source.stages, engines)
    bundle = Bundle(source.family, "eager", source.policy, source.host, source.stages, {}, pipeline, source.prompts)
    return bundle.open_policy()


class Judge:
    """Excess error ratio of the stages as they are, against float32, on fixed frames and noises."""

    def __init__(self, source: CompilePlan, data: Any, num_frames: int) -> None:
        from edgewam.compile.frames import dataset_frames
        from edgewam.quantize.sensitivity import RememberingEngine

        self.source = source
        self.engines = {name: RememberingEngine(stage) for name, stage in source.stages.items()}
        self.frames = dataset_frames(data, num_frames, seed=_FRAME_SEED)
        self.policy = eager_policy(source, self.engines)
        self._known: dict[tuple[int, bytes], Any] = {}
        self.measure(self.frames)  # fills the memory of the engines and of the reference while every layer is float32
        for engine in self.engines.values():
            engine.is_learning = False

    def measure(self, frames: Sequence[Any], policy: Any = None) -> Any:
        """`ExcessError` of the layers that are in place, or of another policy."""
        from edgewam.compile.excess_error import excess_error
        from edgewam.compile.frames import FrameSampler

        self.sample = FrameSampler(policy or self.policy)  # what a layer makes of the instruction is measured too

        def reference(frame: Any, noise: Any) -> Any:
            key = id(frame), noise.tobytes()
            if key not in self._known:
                self._known[key] = self.sample(frame, noise)
            return self._known[key]

        return excess_error(reference, self.sample, frames, self.policy.noise_shape, _FRAME_SEED, PAIRS)

    def each(self, layers: Sequence[Any], say: Report) -> dict[tuple[LayerName, str], float]:
        """Error of every (layer, format) alone."""
        found = {}
        for done, (name, kind, layer) in enumerate(layers):
            found[name, kind] = float(self._with({name: layer}, self.frames[:LAYER_FRAMES]).median)
            say("one layer at a time", done + 1, len(layers))
        return found

    def together(self, layers: Mapping[LayerName, Any]) -> Any:
        """`ExcessError` with all of these layers in place."""
        return self._with(layers, self.frames)

    def _with(self, layers: Mapping[LayerName, Any], frames: Sequence[Any]) -> Any:
        from edgewam.quantize.sensitivity import score_with

        if any(layer.is_stepped for layer in layers.values()):
            return self._with_steps(layers, frames)
        return score_with(self.source.stages, self.engines, layers, lambda: self.measure(frames))

    def _with_steps(self, layers: Mapping[LayerName, Any], frames: Sequence[Any]) -> Any:
        """Scales per step change the stage and its program, so that the policy is put together anew."""
        from dataclasses import replace

        from edgewam.quantize.layers import with_layers
        from edgewam.quantize.steps import with_scale_rows, with_scale_tables
        from edgewam.runtime.backends.eager import TorchEngine

        stages = with_scale_rows(with_layers(self.source.stages, layers))
        source = replace(self.source, stages=stages, programs=with_scale_tables(self.source.programs, stages))
        changed = {name: TorchEngine(stage) for name, stage in stages.items() if stage is not self.source.stages[name]}
        try:
            return self.measure(frames, eager_policy(source, {**self.engines, **changed}))
        finally:
            for engine in self.engines.values():
                engine.forget()
