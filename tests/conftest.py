"""For every test: Ctrl-C works in the processes that tests start, and what needs the machine for itself is marked `alone`."""

import os
import signal
from pathlib import Path

import pytest

# an ignored signal is inherited through exec; a handler is not, so children begin with the default
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as processors: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# folders and files of tests whose subject is time, or that compare times
ALONE = (
    "acceptance", "integrations", "robot_bridge", "cli/test_run.py", "cli/test_road.py", "cli/test_profile.py",
    "cli/test_doctor.py", "profiles/test_measure.py", "training/test_parallel.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if any(place == name or place.startswith(f"{name}/") for name in ALONE):
            item.add_marker("alone")


@pytest.fixture(autouse=True)
def ordinary_process():
    """pytest keeps its scheduling class: the AV1 encoder makes the thread of a root that calls it a real-time one."""
    before = os.sched_getscheduler(0)
    yield
    if os.sched_getscheduler(0) != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
