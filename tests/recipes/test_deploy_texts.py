"""Instructions of a policy whose text encoder is not edgewam's: only stored ones, however long, and never a made-up row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs edgewam[train]")

from dataclasses import replace  # noqa: E402

from edgewam.compile.compile import compile_bundle  # noqa: E402
from edgewam.core.artifacts import read_manifest  # noqa: E402
from edgewam.core.errors import EdgewamError  # noqa: E402
from edgewam.core.observation import Normalizer  # noqa: E402
from edgewam.data.stats import DatasetStats  # noqa: E402
from edgewam.models import aha_wam  # noqa: E402
from edgewam.models.text import SmallTextEncoder, pack_context  # noqa: E402
from edgewam.recipes.deploy import compile_plan  # noqa: E402
from edgewam.recipes.validation import eager_partner  # noqa: E402
from edgewam.runtime.bundle import Bundle  # noqa: E402
from edgewam.training.policy_artifact import PolicyFacts, load_policy, write_policy  # noqa: E402
from tests.training import tiny  # noqa: E402

TEXT_LEN = 64
SIZES = replace(tiny.MODEL, text_len=TEXT_LEN)


def rows(num_words: int) -> np.ndarray:
    """Text rows with so many words, of values that half the precision cannot hold."""
    found = np.zeros((TEXT_LEN, SIZES.text_dim), np.float32)
    found[:num_words] = np.random.default_rng(num_words).normal(size=(num_words, SIZES.text_dim))
    return found


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return aha_wam.build(SIZES)


def policy_at(out: Path, model: torch.nn.Module, prompts: dict[str, np.ndarray], **facts: object) -> Path:
    """An untrained policy as an artifact, its VAE beside it."""
    vae = tiny.vae_at(out.parent / "vae")
    one = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    known = PolicyFacts(tiny.LAYOUT, 6, 0, ("stack the cups",), **{"text_encoder": "umt5", **facts})  # type: ignore[arg-type]
    write_policy(
        out, "policy", "aha_wam", model, DatasetStats(one, one), vae, known, recipe={},
        parents={"vae": read_manifest(vae).digest}, measured={}, dtype="float32", prompts=prompts,
    )  # fmt: skip
    return out


def test_a_bundle_gets_the_stored_rows_of_every_stored_instruction_and_no_others(tmp_path, model):
    policy = policy_at(tmp_path / "policy", model, {"lift": rows(3), "drop": rows(5)})
    loaded = load_policy(policy)
    assert loaded.family == "aha_wam" and loaded.storage == "float32" and list(loaded.prompts) == ["drop", "lift"]
    plan = compile_plan(policy, "eager", threads=1)
    assert set(plan.prompts) == {"lift", "drop"}, "the task that it was trained on has no rows"
    assert np.array_equal(plan.prompts["drop"]["text_rows"][:5], rows(5)[:5])
    assert plan.host["text_encoder"] == "umt5" and "composition" not in plan.host
    with pytest.raises(EdgewamError, match=r"no stored embedding of 'wipe'.*edgewam prompt add .* wipe --text"):
        compile_plan(policy, "eager", prompts=("wipe",), threads=1)


def test_a_long_instruction_makes_room_for_all_rows(tmp_path, model):
    short = compile_plan(policy_at(tmp_path / "short", model, {"lift": rows(48)}), "eager", threads=1)
    long = compile_plan(policy_at(tmp_path / "long", model, {"lift": rows(49)}), "eager", threads=1)
    assert short.host["text_bucket"] == 48 and long.host["text_bucket"] == TEXT_LEN
    for plan, bucket in ((short, 48), (long, TEXT_LEN)):
        plan.programs.check(plan.stages)
        assert plan.prompts["lift"]["text_rows"].shape == (bucket, SIZES.text_dim)
        assert plan.stages["text"].inputs[0].shape == (bucket, SIZES.text_dim)


def test_a_prompt_that_a_finished_bundle_was_given_is_judged_too(tmp_path, model):
    policy = policy_at(tmp_path / "policy", model, {"lift": rows(3)})
    bundle = Bundle.open(compile_bundle(compile_plan(policy, "eager", threads=1), tmp_path / "bundle"), threads=1)
    words, bias = pack_context(rows(7), 48)
    given = replace(bundle, prompts={**bundle.prompts, "wipe": {"text_rows": words, "text_bias": bias}})
    known = eager_partner(given, policy, None, threads=1).prompts
    assert set(known) == {"lift", "wipe"} and np.array_equal(known["wipe"]["text_rows"], words)
    other = replace(given, host={**given.host, "text_encoder": "stored"})
    assert set(eager_partner(other, policy, None, threads=1).prompts) == {"lift"}, "rows of another encoder mean nothing to it"


def test_a_policy_without_instructions_is_refused_with_what_to_do(tmp_path, model):
    with pytest.raises(EdgewamError, match=r"holds no instruction.*edgewam prompt add"):
        compile_plan(policy_at(tmp_path / "policy", model, {}), "eager", threads=1)


def test_the_small_encoder_embeds_what_a_policy_was_trained_on_and_what_is_asked_for(tmp_path, model):
    policy = policy_at(tmp_path / "policy", model, {}, text_encoder="small", composition="single")
    plan = compile_plan(policy, "eager", prompts=("wipe the table",), threads=1)
    assert set(plan.prompts) == {"stack the cups", "wipe the table"} and plan.host["composition"] == "single"
    words = SmallTextEncoder(SIZES.text_dim, TEXT_LEN).encode("wipe the table")
    assert np.array_equal(plan.prompts["wipe the table"]["text_rows"][:3], words[:3])
