"""Reading the networks of all families: from our own directory, or from a released `.pt` file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import torch

from edgewam.core.errors import ArtifactError
from edgewam.models import checkpoints
from edgewam.models.wam_config import WamConfig
from edgewam.models.wam_model import Wam

Config = TypeVar("Config", bound=WamConfig)
Model = TypeVar("Model", bound=Wam)


def load_network(
    path: Path | str,
    family: str,
    network: Callable[[Config], Model],
    kind: type[Config],
    sizes: Config,
    dtype: torch.dtype,
    unused: Collection[str] = (),
) -> Model:
    """A network whose weights become `dtype`, from our own directory or from a released file of the given sizes.

    Args:
        path: what to read.
        family: what a directory must hold.
        network: builds it.
        kind: of the configuration in a directory.
        sizes: of a released file; a directory knows its own.
        dtype: of the weights.
        unused: tensors that a release may hold although its forward pass never reads them.

    Raises:
        ArtifactError: what is wrong with the file and what to do.
    """
    path = Path(path)
    if path.is_dir():
        stored = checkpoints.read(path, family)
        try:
            sizes = kind.from_json(stored.config)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"The sizes in '{path / checkpoints.SIZES}' are not usable: {error}") from error
        model = _empty(network, sizes, dtype)
        checkpoints.fit(model, stored.tensors, f"'{path}'")
        return model
    release = checkpoints.read_release(path)
    tensors = {name: tensor for name, tensor in release.tensors.items() if name not in unused}
    model = _empty(network, sizes, dtype)
    checkpoints.load_release(model, checkpoints.Release(tensors, release.extra), f"'{path}'")
    return model


def _empty(network: Callable[[Config], Model], sizes: Config, dtype: torch.dtype) -> Model:
    """A network without memory behind its parameters; loading gives them theirs."""
    with torch.device("meta"):
        return network(sizes).to(dtype)
