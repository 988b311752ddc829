"""docs/kernels.md shows what the recipes of the full-size stages say, and its commands and files exist."""

import re

import pytest

pytest.importorskip("torch", reason="needs the extra train")

import torch

from benchmarks import kernel_bytes
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.kernel_recipes import meta_stages
from edgewam.core import plugins
from edgewam.core.stage import Cost
from edgewam.kernels.call import Call
from edgewam.kernels.reference import REFERENCES
from edgewam.models import stage_cost
from tests.command_lines import parse

TEXT = kernel_bytes.PAGE.read_text()


@pytest.fixture(scope="module")
def stages():
    with pytest.MonkeyPatch.context() as patch:  # the page shows no operations, and counting them takes ten seconds
        patch.setattr(stage_cost, "_cost", lambda *_: Cost(0, 0, 0, 0))
        found = kernel_bytes.full_size()
    meta_stages.cache_clear()
    return found


def test_the_tables_are_those_of_the_code(stages):
    assert kernel_bytes.page(TEXT, stages) == TEXT, "write them again: python3 -m benchmarks.kernel_bytes"


def test_the_page_knows_every_op():
    assert set(re.findall(r"^\| `(\w+)` \| [a-zA-Z]", TEXT, re.MULTILINE)) >= set(REFERENCES)


@pytest.mark.parametrize("line", [line.split("#")[0].strip() for line in re.findall(r"^    (edgewam .*)$", TEXT, re.MULTILINE)])
def test_a_command_of_the_page_parses(line, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    parse(line)


def test_jobs_and_files_that_the_page_names_exist():
    (jobs,) = re.findall(r"--only ([\w ]+)'", TEXT)
    assert len(find_jobs(jobs.split())) == len(jobs.split())
    for path in re.findall(r"`((?:kernels|compile|runtime)/[\w/.]+)`", TEXT):
        assert (kernel_bytes.ROOT / "edgewam" / path).exists(), path
    assert "fused" in plugins.names("backend_build")


def test_bytes_of_a_fusion_are_those_of_its_intermediate_results():
    given = {
        "x": torch.empty(16, 1024, device="meta"), "weight": torch.empty(9216, 1024, dtype=torch.bfloat16, device="meta"),
        "shift": torch.empty(1024), "scale": torch.empty(1024), "y": torch.empty(16, 9216, dtype=torch.bfloat16, device="meta"),
        "squares": torch.empty(16, 144),
    }  # fmt: skip
    call = Call("linear", {role: role for role in given}, {"norm": True, "activations": "bfloat16"})
    normed, product = 4 * 16 * 1024, 2 * 16 * 9216
    assert kernel_bytes.apart(call, given) == {"norm": normed, "modulation": normed, "rounding": normed // 2, "squares": product}
    kind = kernel_bytes._kind("denoise", call, given, 30)
    assert kind.weights == 2 * 9216 * 1024 and kind.written == product + 4 * 16 * 144
    assert kind.row()[-2:] == ["5", "norm, modulation, rounding, squares"]
