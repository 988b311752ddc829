"""The report page from given data: self-contained, every number from the data, a reason where a part is missing."""

import re

import pytest

from edgewam.profiles.html.charts import histogram, lines
from edgewam.profiles.html.page import SECTIONS, page
from edgewam.profiles.html.values import FORMS, Values
from tests.page_numbers import check_numbers, inside
from tests.profiles.report_data import report_data


def test_every_section_is_there_in_order():
    found = re.findall(r'<section id="(\w+)">', page(report_data()))
    assert found == [part.NAME for part in SECTIONS]
    assert found == ["film", "road", "latency", "parity", "actions", "success", "control", "commands"]


def test_every_number_is_in_the_data_and_says_the_same():
    text = page(report_data())
    paths = check_numbers(text)
    assert {"latency.figures.L_chunk.engine.p50_ms", "success.rows.0.strict.rate", "control.missed"} <= set(paths)
    assert len(paths) > 60


def test_a_number_that_does_not_fit_its_data_is_found():
    text = page(report_data())
    with pytest.raises(AssertionError, match="missed"):
        check_numbers(
            text.replace('data-path="control.missed" data-form="count">1<', 'data-path="control.missed" data-form="count">3<')
        )


def test_every_figure_in_a_table_came_through_the_data():
    for cell in re.findall(r'<td class="n">(.*?)</td>', page(report_data())):
        rest = re.sub(r"<data .*?</data>", "", cell)
        assert not re.search(r"\d", rest.replace("95 %", "")), cell


def test_the_page_needs_nothing_from_outside_and_runs_nothing():
    text = page(report_data())
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json" id="data">']
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|srcset|href)="([^"]*)"', text))
    assert "@import" not in text and "url(" not in text and "http" not in text.replace("http-equiv", "")


def test_strings_from_outside_cannot_become_markup():
    data = report_data()
    data["film"]["prompt"] = data["commands"][0]["command"] = '</script><script>alert("x")</script>'
    text = page(data)
    assert "<script>" not in text and text.count("</script>") == 1
    assert inside(text)["film"]["prompt"] == data["film"]["prompt"]


def test_the_films_bytes_stand_in_the_page_once():
    data = report_data()
    assert page(data).count(data["film"]["film"]) == 2  # moving and still, which are the same picture here
    assert "film" not in inside(page(data))["film"]


@pytest.mark.parametrize("part", ["film", "parity", "success", "control"])
def test_a_part_that_is_missing_says_why_and_what_to_run(part):
    data = report_data()
    data[part] = {"reason": "there is no <simulator>", "command": "edgewam doctor"}
    text = page(data)
    body = text.split(f'<section id="{part}">')[1].split("</section>")[0]
    assert "there is no &lt;simulator&gt;" in body and "<code>edgewam doctor</code>" in body
    assert 'class="chart"' not in body
    check_numbers(text)


def test_without_eager_and_floor_there_are_dashes_and_the_reason():
    data = report_data()
    latency = data["latency"]
    for row in (latency["programs"][0], latency["programs"][0]["rows"][0], latency["figures"]["L_chunk"]):
        row.update(eager=None, speedup=None, floor_ms=None, above_floor=None)
    latency["eager_reason"] = "No eager bars: torch is missing"
    text = page(data)
    assert "No eager bars: torch is missing" in text and "eager PyTorch</span>" not in text and 'class="floor"' not in text
    check_numbers(text)


def test_a_failed_gate_is_written_as_failed():
    data = report_data()
    assert "FAILED" not in page(data)
    data["parity"]["references"][0]["gate2"]["passed"] = False
    assert page(data).count("FAILED") == 1


def test_other_data_give_another_drawing():
    data = report_data()
    before = page(data)
    data["latency"]["programs"][0]["rows"][0]["engine"] = {**data["latency"]["programs"][0]["rows"][0]["engine"], "p50_ms": 8.0}
    after = page(data)
    widths = [re.findall(r'<rect class="engine" x="0" y="\d+" width="([\d.]+)%"', text) for text in (before, after)]
    assert [float(width[0]) for width in widths] == pytest.approx([100 * 8 / 24, 100 * 16 / 24], abs=0.01)


def test_lines_lie_where_their_decades_say():
    drawn = lines({"engine": [(1, 1e-2), (3, 1e-4)]}, "x", "y", "a line")
    assert 'points="0.0,0.0 1000.0,1000.0"' in drawn and "10<sup>-3</sup>" in drawn
    assert "equal bit for bit" in lines({"engine": [(1, 0.0)]}, "x", "y", "nothing")


def test_a_histogram_shows_the_shares_of_its_bins():
    drawn = histogram([0.0, 1.0, 2.0, 4.0], [0, 30, 10], "ms", "counts")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', drawn)]
    assert heights == pytest.approx([1000.0, 1000 / 3], abs=0.1)
    assert "30 of 40: 1 to 2 ms" in drawn and "75 %" in drawn


def test_forms_keep_units_apart():
    assert [FORMS[form](value) for form, value in (("percent", 0.955), ("bytes", 2.5e6), ("ms", 3.96), ("tiny", 4.6e-7))] == [
        "95.5 %", "2.50 MB", "3.96", "4.6e-07",
    ]  # fmt: skip


def test_a_path_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        Values(report_data()).number("latency.programs.0.speed", "ms")
