"""Judges quantised layers while they are being chosen: whole chunks against float32, on frames of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.compile.compile import CompilePlan
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

    def measure(self, frames: Sequence[Any]) -> Any:
        """`ExcessError` of the layers that are in place."""
        from edgewam.compile.excess_error import excess_error
        from edgewam.compile.frames import FrameSampler

        self.sample = FrameSampler(self.policy)  # what a layer makes of the instruction is measured too

        def reference(frame: Any, noise: Any) -> Any:
            key = id(frame), noise.tobytes()
            if key not in self._known:
                self._known[key] = self.sample(frame, noise)
            return self._known[key]

        return excess_error(reference, self.sample, frames, self.policy.noise_shape, _FRAME_SEED, PAIRS)

    def each(self, layers: Sequence[Any], say: Report) -> dict[tuple[LayerName, str], float]:
        """Error of every (layer, format) alone."""
        from edgewam.quantize.sensitivity import measure_sensitivity

        found = measure_sensitivity(
            self.source.stages, self.engines, layers, lambda: self.measure(self.frames[:LAYER_FRAMES]).median,
            lambda done, total: say("one layer at a time", done, total),
        )  # fmt: skip
        return {(s.layer, s.format): s.error for s in found}

    def together(self, layers: Mapping[LayerName, Any]) -> Any:
        """`ExcessError` with all of these layers in place."""
        from edgewam.quantize.sensitivity import score_with

        results: list[Any] = []

        def score() -> float:
            results.append(self.measure(self.frames))
            return float(results[-1].median)

        score_with(self.source.stages, self.engines, layers, score)
        return results[-1]
