"""Puts the plug-in distribution and the double of LeRobot on sys.path for one test, and takes both out again."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "integrations/lerobot_policy_edgewam"
NAMES = ("lerobot", "lerobot_policy_edgewam")


@pytest.fixture
def source(tmp_path):
    """A copy of the distribution's source: pip builds where the source lies."""
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    return shutil.copytree(PLUGIN, tmp_path / "source", ignore=ignore)


@pytest.fixture
def plugin(monkeypatch):
    """The plug-in's modules by name, imported against the double."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
            del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(HERE / "lerobot_stub")
    monkeypatch.syspath_prepend(PLUGIN)

    def module(name):
        return importlib.import_module(f"lerobot_policy_edgewam.{name}")

    yield module
    forget()
