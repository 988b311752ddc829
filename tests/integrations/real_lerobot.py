"""Run by test_lerobot_real.py with a Python that has the real LeRobot: prints one JSON line of what its own factory made."""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch

_register = torch.library.register_fake


def _tolerant(name, *arguments, **options):
    """torchvision of another torch fails to register operators that nothing here calls."""

    def register(function):
        try:
            return _register(name, *arguments, **options)(function)
        except RuntimeError:
            return function

    return register


torch.library.register_fake = _tolerant
os.environ["HF_HUB_OFFLINE"] = "1"

import lerobot  # noqa: E402 - after the shim
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # noqa: E402
from lerobot.robots import Robot, RobotConfig  # noqa: E402
from lerobot.utils.import_utils import register_third_party_plugins  # noqa: E402

from edgewam.core.records import CAMERAS, Observation  # noqa: E402
from edgewam.robot_bridge.robots.lerobot import LeRobotArm  # noqa: E402
from edgewam.robot_bridge.robots.lerobot_description import Description  # noqa: E402
from edgewam.runtime.factory import open_policy  # noqa: E402
from tests.integrations.scene import images_and_state  # noqa: E402


@RobotConfig.register_subclass("swing")
@dataclass
class SwingConfig(RobotConfig):
    port: str = ""


class Swing(Robot):
    """A LeRobot robot: one joint in degrees that is where it was sent."""

    config_class, name = SwingConfig, "swing"

    def __init__(self, config):
        super().__init__(config)
        self._connected, self._pose = False, {"swing.pos": 10.0}

    observation_features = action_features = {"swing.pos": float}  # noqa: RUF012
    is_calibrated = True

    @property
    def is_connected(self):
        return self._connected

    def connect(self, calibrate=True):
        self._connected = True

    def calibrate(self): ...

    def configure(self): ...

    def get_observation(self):
        return dict(self._pose)

    def send_action(self, action):
        self._pose = dict(action)
        return action

    def disconnect(self):
        self._connected = False


DESCRIPTION = """
name = "swing"
control_hz = 50
camera_hz = 25
prompts = ["swing"]
[robot]
make = "real_lerobot.SwingConfig"
options = {{ port = "none", calibration_dir = "{folder}" }}
[[joints]]
name = "swing"
feature = "swing.pos"
unit = "deg"
lower = -1
upper = 1
max_velocity = 2
[cameras]
"""


def policy_facts(bundle, prompt):
    """The plug-in through LeRobot's registry, factory, saving and loading, against edgewam alone."""
    register_third_party_plugins()
    images, state = images_and_state()
    features = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *images[name].shape[:2])) for name in images}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (14,))
    output = {"action": PolicyFeature(FeatureType.ACTION, (14,))}
    options = {"bundle": bundle, "device": "cpu", "input_features": features, "output_features": output, "push_to_hub": False}
    config = PreTrainedConfig.get_choice_class("edgewam")(**options)
    config.validate_features()
    policy_class = get_policy_class("edgewam")
    before, after = make_pre_post_processors(config, dataset_stats=None)
    with tempfile.TemporaryDirectory() as folder:
        for part in (policy_class(config, dataset_stats=None, dataset_meta=None), before, after):
            part.save_pretrained(folder)
        policy = policy_class.from_pretrained(folder)
        before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
    look = {f"observation.images.{name}": torch.from_numpy(image).permute(2, 0, 1) / 255 for name, image in images.items()}
    look |= {"observation.state": torch.from_numpy(state), "task": prompt}
    policy.reset()
    rows = np.concatenate([after(policy.select_action(before(dict(look)))).numpy() for _ in range(8)])
    ours = open_policy(bundle, threads=policy.config.threads)
    ours.reset(prompt, 0)
    truth = ours.infer(Observation(images, state, 0)).actions
    assert set(images) == set(CAMERAS)
    return {"difference": float(np.abs(rows - truth[:8]).max()), "rows": len(rows), "rtc": policy.supports_rtc()}


def robot_facts():
    """A subclass of LeRobot's Robot through the adapter."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/swing.toml", "w") as file:
            file.write(DESCRIPTION.format(folder=folder))
        arm = LeRobotArm(Description.load(f"{folder}/swing.toml"))
        begin = float(arm.observe().state[0])
        arm.command([0.5])
        end = float(arm.observe().state[0])
        arm.stop()
        arm.close()
        return {"robot_class": type(arm._device).__mro__[1].__name__, "begin_rad": begin, "end_rad": end}


if __name__ == "__main__":
    sys.modules["real_lerobot"] = sys.modules["__main__"]  # the description names this module
    begin_s = time.monotonic()
    facts = {"lerobot": lerobot.__version__, **policy_facts(*sys.argv[1:3]), **robot_facts()}
    print(json.dumps({**facts, "seconds": time.monotonic() - begin_s}))
