"""Fixtures that several tests of the bridge use."""

import pytest

from tests.robot_bridge.recorded import Bridge


@pytest.fixture
def bridge():
    """Records without processes, which the test fills."""
    made = Bridge()
    yield made
    made.close()
