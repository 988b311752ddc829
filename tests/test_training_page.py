"""docs/training.md tells the truth: its commands parse, its recipes exist with these numbers, its variant works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgewam.recipes.full_size import PolicyRecipe, find_recipe, recipe_names
from edgewam.recipes.training_estimate import UTILISATION
from tests.command_lines import parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/training.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line.split("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]


def test_the_page_shows_the_whole_road():
    assert {re.search(r"edgewam (\w+)", line).group(1) for line in LINES} >= {"data", "convert", "prompt", "train", "distill"}


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_parses(line, monkeypatch):
    # this machine has no GPU to check `--device cuda` with
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    parse(line[line.index("edgewam ") :])


def test_the_table_of_recipes_is_complete_and_right():
    rows = re.findall(r"^\| (`.*?`) \| .* \| (\d+).*? \| ([\de-]+) \| (\d+) \|$", PAGE, re.MULTILINE)
    named = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(named) == set(recipe_names())
    for name, (_, batch, rate, epochs) in named.items():
        schedule = find_recipe(name).schedule
        assert (schedule.batch_per_rank, schedule.lr, schedule.epochs) == (int(batch), float(rate), int(epochs)), name


def test_the_variant_of_the_page_is_a_recipe():
    (source,) = (block for kind, block in BLOCKS if kind == "python")
    names: dict[str, object] = {}
    exec(source, names)
    recipe = names["half_the_batch"]()
    assert isinstance(recipe, PolicyRecipe) and recipe.schedule.windows_per_step(1) == 6


def test_the_assumed_utilisation_is_the_one_in_the_code():
    assert f"Time assumes that {UTILISATION:.0%} of" in PAGE.replace(" %", "%")


def test_files_that_the_page_names_exist():
    for name in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / name).exists(), name
