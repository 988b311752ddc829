"""Plugins are found by file name; wrong names list what exists; packages outside work by dotted path."""

import sys
import types

import pytest

from edgewam.core import plugins
from edgewam.core.errors import MissingExtraError, PluginError, require


def test_unknown_names_list_what_is_available():
    with pytest.raises(PluginError, match=r"Unknown robot 'alohasim'\. Available: .*aloha_sim"):
        plugins.load("robot", "alohasim")


def test_names_are_listed_without_importing_them(monkeypatch):
    for kind in plugins.KINDS:
        monkeypatch.delitem(sys.modules, f"{plugins.KINDS[kind][0]}.eager", raising=False)
        assert all(isinstance(name, str) for name in plugins.names(kind))


def test_a_package_outside_is_a_dotted_path(monkeypatch):
    module = types.ModuleType("my_robots.arm")
    monkeypatch.setitem(sys.modules, "my_robots", types.ModuleType("my_robots"))
    monkeypatch.setitem(sys.modules, "my_robots.arm", module)
    with pytest.raises(PluginError, match="has no 'SPEC'"):
        plugins.load("robot", "my_robots.arm")
    module.SPEC = object()
    assert plugins.load("robot", "my_robots.arm") is module
    with pytest.raises(PluginError, match="Install the package"):
        plugins.load("robot", "not_there.arm")


def test_require_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewam\[rtx\]'"):
        require("no_such_package_here", extra="rtx")
    assert require("json", extra="x").loads("1") == 1
