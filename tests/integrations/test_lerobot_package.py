"""The plug-in distribution has the names by which LeRobot finds it, and is built whole."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest

from tests.integrations.conftest import PLUGIN

PREFIX = "lerobot_policy_"  # register_third_party_plugins matches the distribution's Name, underscores included
MODULES = {"__init__", "configuration_edgewam", "modeling_edgewam", "processor_edgewam", "engines"}


def test_the_distribution_s_name_is_the_module_s_and_begins_as_lerobot_wants_it():
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    name = project["project"]["name"]
    assert name.startswith(PREFIX) and project["tool"]["setuptools"]["packages"] == [name]
    assert {path.stem for path in (PLUGIN / name).glob("*.py")} == MODULES


def test_importing_it_opens_nothing_of_edgewam():
    """LeRobot imports every plug-in at start-up: edgewam comes at the first observation."""
    for path in (PLUGIN / "lerobot_policy_edgewam").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            assert not any(name and name.split(".")[0] == "edgewam" for name in names), path


@pytest.mark.network  # the build back end comes from a package registry
def test_the_wheel_has_the_name_and_the_modules(source, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode and "setuptools" in done.stderr and "Could not find a version" in done.stderr:
        pytest.skip("no package registry")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        facts = Parser().parsestr(archive.read(metadata).decode())
    assert facts["Name"] == "lerobot_policy_edgewam"
    assert {f"lerobot_policy_edgewam/{name}.py" for name in MODULES} <= set(names)
