"""The robot's state as one more key and value of every layer, of one expert (AHA-WAM) or of both (Fast-WAM)."""

from __future__ import annotations

from torch import Tensor, nn

from edgewam.compile.fused.builder import Builder, Lowered
from edgewam.compile.fused.chains import lower_chain
from edgewam.core.observation import CLAMP
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models.wam_stages import StatesStage, StateStage

_WHY_NORMALISED = "no kernel clamps its input"


class Normalised(nn.Module):
    """Robot state [P] in its own units -> [1, P] as the policy was trained on it."""

    def __init__(self, stage: StateStage) -> None:
        super().__init__()
        for name in ("scale", "offset"):
            self.register_buffer(name, getattr(stage, name), persistent=False)
        self.scale: Tensor
        self.offset: Tensor

    def forward(self, state: Tensor) -> tuple[Tensor]:
        """See the class."""
        return ((state * self.scale + self.offset).clamp(-CLAMP, CLAMP)[None],)


def lower_state(stage: Stage, module: StateStage | StatesStage) -> Lowered:
    """See the forward methods for inputs and outputs.

    Raises:
        NotLowered: a layer of another form.
    """
    builder = Builder(stage, stage.outputs[0].dtype)
    builder.require_width(stage.outputs[0].shape[-1])
    if isinstance(module, StateStage):
        _lower_one(builder, "", module, builder.inputs[1], builder.outputs[0])
    else:
        for number, expert in enumerate(("planner", "executor")):
            part = getattr(module, expert)
            _lower_one(builder, f"{expert}.", part, builder.inputs[1 + number], builder.outputs[number])
    return builder.finished()


def _lower_one(builder: Builder, prefix: str, module: StateStage, text: str, y: str) -> None:
    state = builder.stage.inputs[0]
    normalised = TensorSpec(f"{prefix}normalised", (1, *state.shape), state.dtype)
    x = builder.piece(f"{prefix}normalised", Normalised(module), (state,), normalised, 1, _WHY_NORMALISED)
    embedding = [(f"{prefix}embedding.{i}", layer) for i, layer in enumerate(module.embedding)]
    layers = [(f"{prefix}encoder", module.encoder), *embedding, (f"{prefix}key_values.project", module.key_values.project)]
    shape = (1, module.key_values.project.out_features)
    raw, squares = builder.workspace("raw", shape), builder.squares("squares of raw", shape)
    lower_chain(builder, layers, x, 1, raw, squares=squares)
    gains = builder.weight(f"{prefix}key_values.gains", module.key_values.gains, wide=True)
    builder.call("state_write", {}, raw=raw, squares=squares, gains=gains, text=text, y=y)
