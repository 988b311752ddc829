"""The AHA-WAM family: configuration, construction, loading, stages and programs (DESIGN section 4, "family").

The pieces live in their own files: `aha_wam_config`, `aha_wam_model`, `aha_wam_stages`, `aha_wam_programs`; training uses
`aha_wam_loss` and `aha_wam_ode`, and `aha_wam_stream` is the plain inference that programs are compared with.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edgewam.core.errors import ArtifactError
from edgewam.models import checkpoints
from edgewam.models.aha_wam_config import AhaWamConfig, full, small
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_programs import host_config, programs, prompt_inputs, stages

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
    path = Path(path)
    if path.is_dir():
        stored = checkpoints.read(path, FAMILY)
        try:
            sizes = AhaWamConfig.from_json(stored.config)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"The sizes in '{path / checkpoints.SIZES}' are not usable: {error}") from error
        model = _empty(sizes, dtype)
        checkpoints.fit(model, stored.tensors, f"'{path}'")
        return model
    release = checkpoints.read_release(path)
    model = _empty(config or full(), dtype)
    checkpoints.load_release(model, release, f"'{path}'")
    return model


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


def _empty(config: AhaWamConfig, dtype: torch.dtype) -> AhaWam:
    """A network without memory behind its parameters; loading gives them theirs."""
    with torch.device("meta"):
        return AhaWam(config).to(dtype)
