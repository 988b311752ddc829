"""docs/robot.md tells the truth: its commands parse, what it names exists, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import typer.core
import typer.main

from edgewam import cli
from edgewam.robot_bridge.control.modes import Cause, Mode
from tests.command_lines import parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/robot.md").read_text()
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in PAGE.splitlines() if line.startswith("    edgewam ")}
    | {text for text in re.findall(r"`([^`\n]+)`", PAGE) if text.startswith("edgewam ")}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_parses(line):
    parse(line)


def test_options_that_the_page_names_exist():
    group = typer.main.get_command(cli.build())
    assert isinstance(group, typer.core.TyperGroup)
    known = {
        option
        for name in ("run", "serve", "control")
        for parameter in group.commands[name].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = {text.split()[0] for text in re.findall(r"`(--[^`\n]+)`", PAGE)} - {"--cap-add"}
    assert named and named <= known, named - known


def test_files_that_the_page_names_exist():
    for name in re.findall(r"`((?:examples|tests|integrations)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_every_mode_and_every_cause_has_a_row():
    rows = set(re.findall(r"^\| ([A-Z_]+) \|", PAGE, re.MULTILINE))
    assert {mode.name for mode in Mode} | {cause.name for cause in Cause} - {"NONE"} <= rows
