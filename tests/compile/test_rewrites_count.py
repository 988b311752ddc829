"""The counter behind `python3 -m benchmarks.rewrites`: known work of known operations, and every rewrite in the stored result."""

import json

import pytest
import torch
from torch import nn

from benchmarks.results import RESULTS
from benchmarks.rewrites import PLAIN, histories, time_stages, times_text
from benchmarks.rewrites_count import count
from edgewam.compile.rewrites import REWRITES
from tests.compile.rewritten import lively_model, stages_of

CHANGING = {name for name, row in REWRITES.items() if row.function is not None}


def test_a_linear_layer_is_counted_as_it_is():
    layer, x = nn.Linear(8, 4, device="meta"), torch.empty(2, 8, device="meta")
    found = count(lambda: layer(x), layer)
    assert found.gflop == pytest.approx(2 * 2 * 8 * 4 / 1e9)
    assert found.weight_mb == pytest.approx(4 * (8 * 4 + 4) / 1e6)
    assert found.kernels == 1


def test_views_launch_nothing_and_a_weight_read_twice_counts_once():
    layer, x = nn.Linear(8, 8, device="meta"), torch.empty(2, 8, device="meta")
    once, twice = count(lambda: layer(x), layer), count(lambda: layer(layer(x).reshape(2, 2, 4).flatten(1)), layer)
    assert twice.kernels == 2 and twice.weight_mb == once.weight_mb and twice.gflop == 2 * once.gflop
    assert count(lambda: x.t().unflatten(0, (2, 4)).unbind(0)).kernels == 0


def test_every_version_of_a_stage_is_timed_and_shown():
    torch.set_num_threads(1)
    stages = stages_of(lively_model())
    made = histories(stages)
    assert {name for versions in made.values() for name in versions} == CHANGING | {PLAIN}
    timed = time_stages(stages, "eager", threads=1, n=2, artifact="none")
    assert {stage: set(section.timings) for stage, section in timed.items()} == {s: set(v) for s, v in made.items()}
    text = times_text({"eager": timed})
    assert all(f" {name} " in text for name in CHANGING)


def test_the_stored_result_covers_the_table():
    stored = json.loads((RESULTS / "amd-epyc" / "rewrites.json").read_text())
    assert set(stored["full_size_counts"]["held"]) == set(REWRITES) - CHANGING
    assert set(stored["full_size_counts"]["changing"]) == CHANGING
    for backend in stored["small_timings"].values():
        assert all(section["contract"]["n"] == t["n"] for section in backend.values() for t in section["timings"].values())
