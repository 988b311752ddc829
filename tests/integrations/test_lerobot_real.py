"""The plug-in and the adapter against the real LeRobot, where a Python that has it is named.

LeRobot pins a torch that edgewam's tests do not use, so it has an environment of its own (docs/robot.md says how to make one):

    EDGEWAM_LEROBOT_PYTHON=/path/to/venv/bin/python pytest tests/integrations/test_lerobot_real.py
"""

import json
import os
import subprocess

import pytest

from tests.integrations.conftest import HERE, PLUGIN
from tests.integrations.test_lerobot_policy import BUNDLE, TASK

PYTHON = os.environ.get("EDGEWAM_LEROBOT_PYTHON", "")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(not PYTHON, reason="EDGEWAM_LEROBOT_PYTHON names no Python that has LeRobot")
def test_lerobot_s_own_factory_finds_builds_saves_reloads_and_runs_the_policy_and_its_robots_can_be_driven(source, tmp_path):
    install = [PYTHON, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), str(source)]
    subprocess.run(install, check=True, timeout=200)
    root = PLUGIN.parents[1]
    done = subprocess.run(
        [PYTHON, str(HERE / "real_lerobot.py"), str(BUNDLE), TASK],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}, cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["rows"] == 8 and facts["difference"] == 0.0 and facts["rtc"] is False
    assert facts["robot_class"] == "Robot"
    assert facts["begin_rad"] == pytest.approx(0.17453, abs=1e-4) and facts["end_rad"] == pytest.approx(0.5, abs=1e-6)
