"""Profiles: shares and the rest add up to the whole, the table shows floors where they are known, JSON has no NaN."""

import json

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.device import load_device
from edgewam.profiles.measure import Timing
from edgewam.profiles.report import Profile, table
from edgewam.profiles.roofline import roofline

CONTRACT = TimingContract.here(
    engine="eager", precision="fp32", steps=2, shapes={"image": (4, 4, 3)}, stages=("vae", "denoise"), host_copies=True,
    threads=1, warmup=1, n=3,
)  # fmt: skip
STAGES = {"vae": Timing.from_samples([1.0]), "denoise": Timing.from_samples([2.0])}
TOTAL = Timing.from_samples([6.0])
COSTS = {"vae": Cost(1792_000, 0, 1, 0), "denoise": Cost(0, 209_500_000_000, 1, 0)}
FLOOR = roofline(COSTS, load_device("rtx-5090"), "bf16", {"denoise": 2})


def profile(**changes):
    return Profile(**{"title": "act", "contract": CONTRACT, "total": TOTAL, "stages": STAGES, "calls": {"denoise": 2}, **changes})


def test_shares_and_rest_add_up_to_the_whole():
    p = profile()
    assert p.share("vae") == pytest.approx(1 / 6) and p.share("denoise") == pytest.approx(4 / 6)
    assert p.rest_ms == pytest.approx(1.0)
    assert sum(p.share(n) for n in STAGES) + p.rest_ms / TOTAL.p50_ms == pytest.approx(1.0)


def test_table_has_the_contract_and_every_stage():
    lines = profile().text().splitlines()
    assert lines[0] == "act" and lines[1] == CONTRACT.text()
    assert [line.split()[0] for line in lines[4:]] == ["vae", "denoise", "(between)", "total"]
    assert "floor" not in lines[2]


def test_table_shows_the_floor_where_the_device_is_known():
    rows = {line.split()[0]: line.split() for line in profile(floor=FLOOR).text().splitlines()[4:]}
    assert rows["vae"][-3:] == ["0.001", "1000.00", "memory"]
    assert rows["denoise"][-3:] == ["1.000", "2.00", "compute"]
    assert rows["total"][-2:] == ["2.001", "3.00"]


def test_json_is_strict_and_complete():
    data = json.loads(json.dumps(profile(floor=FLOOR).to_json(), allow_nan=False))
    assert data["stages"]["denoise"]["calls"] == 2 and data["floor"]["total_ms"] == pytest.approx(2.001)
    assert TimingContract.from_json(data["contract"]) == CONTRACT and Timing.from_json(data["total"]) == TOTAL


def test_a_total_alone_is_a_profile():
    assert profile(stages={}, calls={}).text().splitlines()[-1].startswith("total")


def test_calls_of_untimed_stages_are_refused():
    with pytest.raises(EdgewamError, match="not timed"):
        profile(calls={"decode": 1})


def test_columns_line_up():
    lines = table([["a", "bb"], ["long", "1"], ["x"]]).splitlines()
    assert lines == ["a     bb", "--------", "long   1", "x"]
