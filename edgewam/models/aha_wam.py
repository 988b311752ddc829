"""The AHA-WAM family: configuration, construction, loading, stages and programs (DESIGN section 4, "family").

The pieces live in their own files: `aha_wam_config`, `aha_wam_model`, `aha_wam_stages`, `aha_wam_programs`; training uses
`aha_wam_loss`, and `aha_wam_stream` is the plain inference that programs are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewam.core.errors import ContractError
from edgewam.models import checkpoints
from edgewam.models.aha_wam_config import AhaWamConfig, full, small
from edgewam.models.aha_wam_loss import condition, training_loss
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_programs import host_config, programs, prompt_inputs, stages
from edgewam.models.flow_loss import draw_noise
from edgewam.models.flow_ode import draw_anchors, ode_loss, rollout_loss, sample_horizon, teacher_trajectory
from edgewam.models.wam_files import load_network
from edgewam.models.wan_sizes import Shapes, transformer_sizes

FAMILY = "aha_wam"
Config = AhaWamConfig
OWN_CONDITIONING = False  # teacher and student are conditioned by the teacher's planner and router
CHUNK_IMAGES = True  # the router looks at the picture at the start of each chunk
LEARNT_BY_STUDENTS = ("mot.mixtures.action.", "mot.action_branch_embedding")
MATRICES = (".blocks.", ".layer_query_proj.", ".layer_delta_proj.")
_EDITOR, _QUERIES = "mot.chunk_kv_cache_editor.", "chunk_obs_query_encoder.base_queries"

__all__ = [
    "BLOCKS", "CHUNK_IMAGES", "FAMILY", "LEARNT_BY_STUDENTS", "MATRICES", "OWN_CONDITIONING", "AhaWam", "AhaWamConfig",
    "Config", "build", "condition", "draw_anchors", "draw_noise", "full", "host_config", "load", "matches", "ode_loss",
    "programs", "prompt_inputs", "rollout_loss", "sample_horizon", "save", "sizes_of", "small", "stages",
    "teacher_trajectory", "training_loss",
]  # fmt: skip


def matches(names: Iterable[str]) -> bool:
    """Whether tensors of these names (group.key) are an AHA-WAM's: it has the router's editor."""
    return any(name.startswith(_EDITOR) for name in names)


def sizes_of(shapes: Shapes, **given: Any) -> AhaWamConfig:
    """Sizes of a checkpoint.  What shapes cannot tell takes the released value, or that in `given` (fields of `AhaWamConfig`).

    Raises:
        ContractError: tensors are missing, or something is ambiguous or contradictory; the message says what settles it.
    """
    found = transformer_sizes(shapes, given, {"num_queries": (_QUERIES, 2)})
    try:
        return AhaWamConfig(**found)
    except (TypeError, ValueError) as error:
        raise ContractError(f"These sizes make no AHA-WAM: {error} Give others than {dict(given)}.") from error


def BLOCKS(model: AhaWam) -> list[nn.Module]:
    """All layers of both transformers, then the router's projections of every layer."""
    editor = model.editor
    return [*model.planner.blocks, *model.executor.blocks, *editor.layer_query_proj, *editor.layer_delta_proj]


def build(config: AhaWamConfig) -> AhaWam:
    """A freshly initialised network, float32."""
    return AhaWam(config)


def load(path: Path | str, config: AhaWamConfig | None = None, dtype: torch.dtype = torch.float32) -> AhaWam:
    """A network from our own directory, or from a released `.pt` file of the sizes in `config` (default: `full`).

    Weights become `dtype`; give torch.bfloat16 for the full size, whose float32 copy takes 29 GB.

    Raises:
        ArtifactError: what is wrong with the file and what to do.
    """
    return load_network(path, FAMILY, AhaWam, AhaWamConfig, config or full(), dtype)


def save(
    model: AhaWam,
    directory: Path | str,
    storage: str = "float32",
    metadata: dict[str, object] | None = None,
    base: Path | str | None = None,
) -> None:
    """Write our own format; `storage` is float32, float16 or bfloat16, `base` a saved model to store differences from."""
    config = model.config.to_json()
    checkpoints.save(model, directory, family=FAMILY, config=config, storage=storage, metadata=metadata, base=base)
