"""The README's figures are the committed results of the artifacts that ship."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures import BRIDGE, DEVICE, FIGURES, README, is_measured, main, table_of
from benchmarks.marks import with_block
from benchmarks.results import RESULTS

FOLDER = RESULTS / DEVICE
COMMITTED = [*FIGURES, *(figures for figures in BRIDGE if (FOLDER / f"{figures.name}.json").exists())]


@pytest.mark.parametrize("figures", COMMITTED, ids=lambda figures: figures.name)
def test_every_result_is_of_the_artifacts_that_ship(figures):
    assert is_measured(figures, FOLDER), f"measure it again: {figures.shown}"


def test_the_readme_shows_the_results():
    assert main(["--check"]) == 0, "write the table again: python3 -m benchmarks.figures --table"


def test_another_result_gives_another_table(tmp_path):
    for path in FOLDER.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    run = json.loads((tmp_path / "run_60s.json").read_text())
    (tmp_path / "run_60s.json").write_text(json.dumps(run | {"missed": 77}))
    assert table_of(tmp_path) != table_of(FOLDER)
    changed = with_block(README.read_text(), "figures", table_of(tmp_path))
    assert "/s, 77, " in changed.replace(" per s", "/s") and changed.count("of figures -->") == 1


def test_a_result_of_other_weights_counts_as_not_measured(tmp_path):
    figures = next(f for f in FIGURES if f.name == "run_60s")
    run = json.loads((FOLDER / "run_60s.json").read_text())
    (tmp_path / "run_60s.json").write_text(json.dumps(run | {"bundle": "0" * 64}))
    assert not is_measured(figures, tmp_path) and is_measured(figures, FOLDER)
    assert not is_measured(FIGURES[0], tmp_path)
