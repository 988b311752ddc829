"""Prompts of a bundle: listing, adding, refusing."""

import numpy as np
import pytest

from edgewam.compile.compile import compile_bundle
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ContractError
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.prompts import prompt_names, store_prompts
from tests.compile.toy import toy_plan

TEXT = np.full((3, 8), 0.5, np.float32)


@pytest.fixture
def path(tmp_path):
    return compile_bundle(toy_plan(prompts={"wave": {"text": np.ones((3, 8), np.float32)}}), tmp_path / "toy")


def test_a_stored_prompt_is_known_after_opening_and_the_rest_is_unchanged(path):
    before = read_manifest(path)
    store_prompts(path, {"hand over / fast": {"text": TEXT}})
    assert prompt_names(path) == ["hand over / fast", "wave"]
    np.testing.assert_array_equal(Bundle.open(path, threads=1).prompt("hand over / fast")["text"], TEXT)
    after = read_manifest(path)
    changed = {name for name in after.files if after.files[name] != before.files.get(name)}
    assert changed == {"prompts.safetensors"} and after.config == before.config and after.digest != before.digest


def test_inputs_that_do_not_fit_are_refused_and_change_nothing(path):
    before = read_manifest(path).digest
    with pytest.raises(ContractError, match="'text' must be"):
        store_prompts(path, {"dance": {"text": TEXT[:2]}})
    with pytest.raises(ContractError, match=r"takes \['text'\], got \['words'\]"):
        store_prompts(path, {"dance": {"words": TEXT}})
    assert read_manifest(path).digest == before and prompt_names(path) == ["wave"]
