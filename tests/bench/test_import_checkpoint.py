"""The import benchmark fails exactly when a figure of it is over its limit, or the file did not come back."""

import copy

import pytest

from benchmarks.import_checkpoint import CONVERT_BYTES, INSPECT_BYTES, INSPECT_S, gates

GOOD = {
    "came_back_equal": True,
    "commands": {
        "inspect": {"seconds": 0.9 * INSPECT_S, "peak_bytes": 0.9 * INSPECT_BYTES},
        "convert": {"seconds": 100.0, "peak_bytes": 0.9 * CONVERT_BYTES},
        "convert --format upstream": {"seconds": 100.0, "peak_bytes": 0.9 * CONVERT_BYTES},
    },
}


@pytest.mark.parametrize(
    ("command", "figure", "phrase"),
    [
        ("inspect", "seconds", "inspect must take less"), ("inspect", "peak_bytes", "inspect must take less"),
        ("convert", "peak_bytes", "convert must stay below"), ("convert --format upstream", "peak_bytes", "upstream must stay"),
    ],
)  # fmt: skip
def test_each_limit_is_a_gate(command, figure, phrase):
    assert gates(GOOD) == []
    found = copy.deepcopy(GOOD)
    found["commands"][command][figure] *= 1.2
    (missed,) = gates(found)
    assert phrase in missed


def test_a_file_that_differs_is_a_miss():
    assert gates(GOOD | {"came_back_equal": False}) == ["the file did not come back equal"]
