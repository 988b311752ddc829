"""docs/data.md tells the truth: its commands parse, and its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgewam.core.observation import COMPOSITIONS
from edgewam.data import windows
from edgewam.data.contact_sheet import CANVASES
from tests.command_lines import parse

PAGE = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text()
BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = sorted({line.split("#")[0].strip() for line in BLOCKS.splitlines()})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_parses(line):
    parse(line)


def test_compositions_are_those_of_the_table():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|.*\| (\d+)x(\d+) \|$", PAGE, re.MULTILINE)
    assert {name: (int(height), int(width)) for name, _, height, width in rows} == CANVASES
    assert {name: tuple(re.findall(r"`(\w+)`", cameras)) for name, cameras, *_ in rows} == {
        name: form.cameras for name, form in COMPOSITIONS.items()
    }


def test_layouts_are_those_of_the_table():
    rows = re.findall(
        r"^\| ((?:`\w+\(\)`(?:, )?)+) \| (\d+) \| (\d+) \| (\d+), (\d+) \| (\w+) \| 0(?: to (\d+))? \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 3
    for names, *sizes, history, offset in rows:
        for name in re.findall(r"`(\w+)\(\)`", names):
            layout = getattr(windows, name)()
            assert (layout.num_steps, layout.stride, layout.horizon, layout.chunk) == tuple(map(int, sizes))
            assert layout.max_offset == int(offset or 0)
            assert layout.history_spacings == (() if history == "none" else (int(history),))
