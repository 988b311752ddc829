"""The README tells the truth: its commands parse with the options that exist, and its tree is the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import typer.core
import typer.main

from edgewam import cli
from tests.command_lines import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```[a-z]*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
INLINE = re.findall(r"`([^`\n]+)`", README)
WHERE = next(block for block in BLOCKS if block.startswith("edgewam/\n"))


def command_lines(program: str) -> list[str]:
    """Every line of a code block, and every inline code, that calls a program; comments are dropped."""
    lines = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return sorted({line for line in [*lines, *INLINE] if line.startswith(f"{program} ")})


def listed_paths() -> list[str]:
    """The paths of the annotated tree; two spaces of indent are one level."""
    paths, above = [], []
    for line in WHERE.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        paths.append("".join(above))
    return paths


def test_the_readme_shows_the_whole_road():
    shown = {shlex.split(line)[1] for line in command_lines("edgewam")}
    assert shown >= {"collect", "train", "distill", "compile", "validate", "profile", "inspect", "evaluate", "run"}


@pytest.mark.parametrize("line", command_lines("edgewam"))
def test_a_command_of_the_readme_parses(line):
    parse(line)


@pytest.mark.parametrize("path", listed_paths())
def test_a_path_of_the_readme_exists(path):
    place = ROOT / path
    assert place.is_dir() if path.endswith("/") else place.is_file()


def test_every_package_is_in_the_readme():
    packages = {f"edgewam/{path.parent.name}/" for path in (ROOT / "edgewam").glob("*/__init__.py")}
    assert packages <= set(listed_paths())


def test_files_and_make_targets_named_in_the_readme_exist():
    for name in INLINE:
        if re.fullmatch(r"[\w./-]+\.(md|toml|py)", name):
            assert list(ROOT.glob(f"**/{name}")), name
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in command_lines("make"):
        assert line.split()[1] in targets, line


def test_help_lists_the_commands_in_the_order_of_the_road():
    group = typer.main.get_command(cli.build())
    assert isinstance(group, typer.core.TyperGroup)
    road = [name for name in group.list_commands(typer.Context(group)) if name in cli.ORDER]
    assert tuple(road) == cli.ORDER
