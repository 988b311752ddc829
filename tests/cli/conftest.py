"""One recorded dataset for all tests of the command line, and places to work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewam.cli._shipped import SMALL
from tests.cli.command import apart

EPISODES, FIRST_SEED = 2, 700_001


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Commands that run in this process compute with one thread, as the others do."""
    torch = pytest.importorskip("torch", reason="needs edgewam[train]")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations, recorded by the command itself."""
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    out = tmp_path_factory.mktemp("collected") / "cube"
    done = apart("collect", out, "--episodes", EPISODES, "--first-seed", FIRST_SEED, "--json")
    if "Cannot render the simulator" in done.err:
        pytest.skip(done.err.strip().splitlines()[-1])
    assert done.ok().json["num_episodes"] == EPISODES
    return out


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The policy `small`: vae, teacher, student, bundle."""
    return SMALL
