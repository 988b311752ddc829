"""What training and distillation may ask of a model family, whatever it is (DESIGN section 4; the list is `TRAINABLE`).

A family is a module that `core.plugins` finds.  Its network is any `nn.Module` with a `config` that has these sizes; nothing
above this package knows more of it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

from torch import nn

from edgewam.core import plugins
from edgewam.core.errors import PluginError

# Beside build, load, save, stages, programs, host_config and prompt_inputs, which bundles need.
# training_loss, draw_noise: the joint loss.  condition, sample_horizon: the sampler on a batch.  The rest is for distillation:
# OWN_CONDITIONING, a student is conditioned by itself and not by its teacher; LEARNT_BY_STUDENTS, prefixes of its parameters.
# CHUNK_IMAGES: it looks at a picture per chunk (`LossBatch.chunk_latents`).  MATRICES: parts of the names of 2-D weights that
# Muon may take.  BLOCKS(model): the layers that are sharded one by one.
# sizes_of, matches: what a checkpoint's tensors tell.
TRAINABLE = (
    "Config", "sizes_of", "matches", "training_loss", "draw_noise", "condition", "sample_horizon", "draw_anchors", "ode_loss",
    "rollout_loss", "teacher_trajectory", "OWN_CONDITIONING", "CHUNK_IMAGES", "LEARNT_BY_STUDENTS", "MATRICES", "BLOCKS",
)  # fmt: skip


class Sizes(Protocol):
    """A family's configuration: lengths are tokens, horizons and chunks control steps, images pixels.

    num_chunks action chunks of chunk_size make the horizon; memory_slots history frames at most.
    """

    @property
    def action_dim(self) -> int: ...
    @property
    def proprio_dim(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def num_chunks(self) -> int: ...
    @property
    def memory_slots(self) -> int: ...
    @property
    def text_dim(self) -> int: ...
    @property
    def text_len(self) -> int: ...
    @property
    def image_height(self) -> int: ...
    @property
    def image_width(self) -> int: ...
    @property
    def latent_dim(self) -> int: ...
    @property
    def shift(self) -> float: ...
    @property
    def train_shift(self) -> float: ...

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        ...


def trainable(name: str) -> ModuleType:
    """The family's module.

    Raises:
        PluginError: unknown, or it lacks what training needs.
    """
    module = plugins.load("family", name)
    if missing := [attribute for attribute in TRAINABLE if not hasattr(module, attribute)]:
        raise PluginError(
            f"The family '{name}' can be compiled but not trained or distilled: it lacks {', '.join(missing)}. "
            "CONTRIBUTING.md says what a family offers."
        )
    return module


def sizes(model: nn.Module) -> Sizes:
    """The configuration of a family's network."""
    return model.config  # type: ignore[return-value]
