"""The AHA-WAM family: configuration, construction, loading, stages and programs (DESIGN section 4, "family").

The pieces live in their own files: `aha_wam_config`, `aha_wam_model`, `aha_wam_stages`, `aha_wam_programs`; training uses
`aha_wam_loss` and `aha_wam_ode`, and `aha_wam_stream` is the plain inference that programs are compared with.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edgewam.models import checkpoints
from edgewam.models.aha_wam_config import AhaWamConfig, full, small
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_programs import host_config, programs, prompt_inputs, stages
from edgewam.models.wam_files import load_network

FAMILY = "aha_wam"

__all__ = [
    "FAMILY",
    "AhaWam",
    "AhaWamConfig",
    "build",
    "full",
    "host_config",
    "load",
    "programs",
    "prompt_inputs",
    "save",
    "small",
    "stages",
]


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
