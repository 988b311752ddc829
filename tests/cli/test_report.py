"""`edgewam report`: one real page about the shipped bundle, looked at in a browser; a perturbed student gives other numbers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.artifacts import read_manifest, write_artifact
from tests.browser import browser
from tests.cli.command import Done, here, leftovers
from tests.page_numbers import check_numbers, inside

SECTIONS = ["film", "road", "latency", "parity", "actions", "success", "control", "commands"]
PHONE, DESK = 375, 1280
MAX_FILM_BYTES = 1_500_000
PERTURBED = 1.02  # two per cent on the last layer: far beyond rounding, far from breaking the policy


@pytest.fixture(scope="module")
def results(shipped, tmp_path_factory) -> Path:
    """What the other commands leave: two real episodes, and the record of a short real-time run."""
    folder = tmp_path_factory.mktemp("results")
    here(
        "evaluate", shipped / "bundle", "--seeds", 2, "--first-seed", 5000, "--workers", 1, "--results", folder / "two.jsonl"
    ).ok()
    (folder / "run.json").write_text(here("run", shipped / "bundle", "--seconds", 2, "--threads", 1, "--json").out)
    (folder / "other.json").write_text('{"a": 1}')
    return folder


@pytest.fixture(scope="module")
def made(dataset, shipped, results, tmp_path_factory) -> tuple[Path, Done]:
    """The page and the command's answer.  `dataset` skips where the simulator cannot be drawn."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    arguments = ["--results", results, "--out", out, "-n", 5, "--frames", 1, "--threads", 1, "--json"]
    return out, here("report", shipped / "bundle", *arguments).ok()


def test_the_page_holds_every_part_and_every_number_equals_its_data(made):
    out, done = made
    text = out.read_text()
    data = inside(text)
    assert data == {key: value for key, value in done.json.items() if key != "out"} and done.json["out"] == str(out)
    assert len(check_numbers(text)) > 150
    for part in ("film", "latency", "parity", "success", "control"):
        assert "reason" not in data[part], data[part]
    assert data["film"]["film_bytes"] < MAX_FILM_BYTES and data["film"]["pictures"] > 20
    assert data["notes"] and "other.json" in data["notes"][0]
    assert not leftovers(out.parent)


def test_its_figures_are_from_this_run_or_labelled_as_shipped(made, shipped):
    data = made[1].json
    digest = read_manifest(shipped / "bundle").digest
    mine = [row for row in data["success"]["rows"] if not row["is_shipped"]]
    assert [(row["policy"], row["strict"]["n"], row["source"]) for row in mine] == [
        ("this bundle", 2, f"this run, {digest[:12]}")
    ]
    for row in data["success"]["rows"]:
        assert row["is_shipped"] == row["source"].startswith("shipped, ") and len(row["source"].split(", ")[1]) == 12
    assert data["control"]["source"] == f"this run, {digest[:12]}" and data["control"]["ticks"] == 100
    assert sum(data["control"]["histograms"]["lateness_ms"]["counts"]) == 100 - data["control"]["missed"]
    assert data["latency"]["contract"]["artifact"] == digest
    roles = {entry["role"]: entry for entry in data["road"]}
    main_road = [role for role in roles if role != "reproduce"]  # the larger VAE whose latents the shipped one gives
    assert main_road == ["dataset", "vae", "teacher", "student", "bundle"] and roles["student"]["origin"] == "shipped"
    assert roles["student"]["digest"] == read_manifest(shipped / "student").digest


def test_engine_eager_and_floor_stand_beside_each_other(made):
    (act,) = (program for program in made[1].json["latency"]["programs"] if program["name"] == "act")
    rows = {row["stage"]: row for row in act["rows"]}
    assert {"image_encoder", "denoise", "router"} <= set(rows) and rows["denoise"]["calls"] == 2
    for row in rows.values():
        assert row["engine"]["p50_ms"] > 0 and row["eager"]["p50_ms"] > 0
    assert 0 < act["floor_ms"] < act["engine"]["p50_ms"] < act["eager"]["p50_ms"]


def test_a_browser_shows_it_without_a_complaint_on_a_phone_and_a_desk_in_both_schemes(made, tmp_path):
    out, _ = made
    with browser(tmp_path / "profile") as page:
        colours = set()
        for width in (PHONE, DESK):
            for scheme in ("light", "dark"):
                page.look(width, scheme)
                page.open(out)
                assert page.ask("document.documentElement.scrollWidth") <= width, (width, scheme)
                colours.add((scheme, page.ask("getComputedStyle(document.body).backgroundColor")))
                assert page.ask("[...document.querySelectorAll('section')].map(s => s.id)") == SECTIONS
        assert len(colours) == 2, "light and dark look alike, or one of them changes with the width"
        assert page.problems == []
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}
        drawn = page.ask(
            "['latency', 'success', 'actions', 'control'].map(name => [...document.querySelectorAll(`#${name} .chart svg`)]"
            ".filter(s => s.getBoundingClientRect().width > 100 && s.querySelector('rect, polyline, circle')).length)"
        )
        assert drawn[0] >= 4 and drawn[1] >= 1 and drawn[2] == 1 and drawn[3] == 2
        assert page.ask("(i => i.complete && i.naturalWidth > 100 && i.naturalHeight > 100)(document.querySelector('#film img'))")
        shown = page.ask(
            "[...document.querySelectorAll('data')]"
            ".map(d => [d.value, d.dataset.path, d.textContent, d.getClientRects().length > 0])"
        )
        data = page.ask("JSON.parse(document.getElementById('data').textContent)")
        assert data == inside(out.read_text()) and len(shown) == len(check_numbers(out.read_text(), data))
        hidden = [path for _, path, _, is_visible in shown if not is_visible and ".chunk." not in path]
        assert hidden == [], "only the closed list of the action error may be folded away"


@pytest.fixture(scope="module")
def perturbed(shipped, tmp_path_factory) -> Path:
    """The shipped student with its action head a little larger."""
    from safetensors.numpy import load_file, save_file

    # a student stores only what differs from the teacher beside it
    place = shutil.copytree(shipped, tmp_path_factory.mktemp("perturbed") / "small", ignore=shutil.ignore_patterns("bundle"))
    source, out = shipped / "student", place / "student"
    manifest = read_manifest(source)
    arguments = {"config": manifest.config, "parents": manifest.parents, "measured": dict(manifest.measured)}
    with write_artifact(out, manifest.kind, **arguments) as directory:
        for name in manifest.files:
            shutil.copyfile(source / name, directory / name)
        tensors = load_file(directory / "model.safetensors")
        name = next(name for name in tensors if name.endswith("action.head.weight"))
        tensors[name] = (tensors[name].astype(np.float32) * PERTURBED).astype(tensors[name].dtype)
        save_file(tensors, directory / "model.safetensors")
    return out


def test_a_perturbed_student_fails_the_gates_and_changes_the_page(made, perturbed, shipped):
    from edgewam.compile.frames import Frame
    from edgewam.profiles.html.page import page
    from edgewam.recipes.report_actions import compare
    from edgewam.recipes.report_episode import play
    from edgewam.recipes.validation import eager_partner
    from edgewam.runtime.bundle import Bundle

    out, _ = made
    bundle = Bundle.open(shipped / "bundle", threads=1)
    episode = play(bundle, "aloha_sim", None, seed=0, max_ticks=16)
    student, changed = (eager_partner(bundle, path, 2, threads=1) for path in (shipped / "student", perturbed))
    arguments = ("student", [Frame(observation, episode.prompt) for observation in episode.observations])
    whole, broken = (compare(one, student, *arguments) for one in (bundle, changed))
    assert whole["gate1"]["passed"] and whole["gate2"]["passed"]
    assert not broken["gate1"]["passed"] and not broken["gate2"]["passed"]
    for fine, off in zip(whole["chunk"], broken["chunk"], strict=True):
        assert off["median"] > 10 * fine["median"] and off["spread"] == fine["spread"]
    data = json.loads(json.dumps(inside(out.read_text())))
    data["film"] |= {"film": "data:,", "still": "data:,"}
    pages = []
    for one in (whole, broken):
        data["parity"] = {"references": [one], "num_frames": 1, "frames_from": "a test"}
        pages.append(page(data))
        check_numbers(pages[-1])
    fine, off = pages
    assert "FAILED" not in fine and off.count("FAILED") == 2
    assert fine.split('id="actions"')[1].split("</figure>")[0] != off.split('id="actions"')[1].split("</figure>")[0]


def test_a_policy_of_another_bundle_is_refused(perturbed, shipped, tmp_path):
    done = here("report", shipped / "bundle", "--policy", perturbed, "--out", tmp_path / "report.html")
    assert done.code == 1 and "was not made from" in done.err and "student" in done.err
    assert not any(tmp_path.iterdir())


def test_on_a_robot_without_torch_the_page_is_made_and_says_what_is_missing(made, shipped, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch then fails as where it is not installed
    out = tmp_path / "report.html"
    data = here("report", shipped / "bundle", "--out", out, "-n", 5, "--threads", 1, "--json").ok().json
    assert "not installed" in data["latency"]["eager_reason"] and "not installed" in data["parity"]["reason"]
    assert data["parity"]["command"] == "pip install 'edgewam[train]'"
    (act,) = (program for program in data["latency"]["programs"] if program["name"] == "act")
    assert act["eager"] is None and act["engine"]["p50_ms"] > 0 and "reason" not in data["film"]
    assert "Not in this report:" in out.read_text() and "No eager bars" in out.read_text()
    check_numbers(out.read_text())


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("run.json", "{not json", "Cannot read"),
        ("results.jsonl", '{"format": 99, "config": {}}\n', "format 99"),
        ("run.json", '{"control_hz": 50, "lateness_ms": {}, "missed": 0, "bundle": "another"}', "the run of another bundle"),
        (None, "", "is no folder"),
    ],
)
def test_results_that_cannot_be_used_are_refused_and_nothing_is_written(name, content, phrase, shipped, tmp_path):
    folder, out = tmp_path / "results", tmp_path / "report.html"
    if name is not None:
        folder.mkdir()
        (folder / name).write_text(content)
    done = here("report", shipped / "bundle", "--results", folder, "--out", out, "--threads", 1)
    assert done.code == 1 and phrase in done.err and "Traceback" not in done.err
    assert not out.exists()
