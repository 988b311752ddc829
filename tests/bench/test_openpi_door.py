"""The benchmark of the openpi door measures a whole round trip, of which its parts are parts."""

import pytest

from benchmarks.openpi_door import section
from benchmarks.results import Section

pytest.importorskip("openpi_client")


def test_the_parts_lie_within_the_round_trip():
    found = section("3 x 128x160", n=50, hz=None)
    trip, door, link, policy = (found.timings[name] for name in ("round_trip", "door_and_engine", "link", "policy"))
    assert trip.n == 50
    assert policy.p50_ms < door.p50_ms < trip.p50_ms
    assert link.p50_ms + policy.p50_ms < trip.p50_ms
    assert Section.from_json(found.to_json()) == found
    assert found.contract.shapes["cam_high"] == (128, 160, 3)
