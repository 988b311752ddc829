"""A bundle of another card, version or driver is refused with the command that makes it again."""

import pytest

from edgewam.core.errors import ArtifactError
from edgewam.runtime.compatibility import require_device

HERE = {"name": "NVIDIA GeForce RTX 5090", "sm": "sm_120", "runtime": "tensorrt_rtx 1.7.1.116", "driver": "580.95.05"}
REBUILD = "edgewam compile POLICY BUNDLE --backend tensorrt --target rtx-5090"


def check(made_for, here=HERE):
    require_device(made_for, here, "runs/bundle", REBUILD)


def test_the_same_device_runs_it_and_a_newer_driver_too():
    check(HERE)
    check({**HERE, "driver": "570.86"})
    check({**HERE, "driver": "580.9.1"})  # 9 is less than 95: numbers, not letters
    check({})  # made for the processor


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sm": "sm_89", "name": "NVIDIA GeForce RTX 4090"}, "made for NVIDIA GeForce RTX 4090 with sm 'sm_89'"),
        ({"runtime": "tensorrt_rtx 1.6.1.120"}, "runtime 'tensorrt_rtx 1.6.1.120'"),
        ({"driver": "581.0"}, "needs at least that; here is 580.95.05"),
    ],
)
def test_another_device_version_or_driver_is_refused_with_the_command(change, words):
    with pytest.raises(ArtifactError, match=words) as refused:
        check({**HERE, **change})
    assert REBUILD in str(refused.value)


def test_a_gpu_bundle_on_the_processor_is_refused():
    with pytest.raises(ArtifactError, match="opened on the processor"):
        check(HERE, {})
