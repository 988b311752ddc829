"""One dataset, one untrained VAE and their latent cache for all tests of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewam.data.dataset import Dataset
from tests.training import tiny


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path, Path]:
    """(dataset, VAE artifact, directory for caches)."""
    root = tmp_path_factory.mktemp("road")
    return tiny.dataset_at(root / "dataset"), tiny.vae_at(root / "vae"), root
