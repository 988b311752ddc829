"""Upstream's cache files are read and written as they are; stored prompts and sources answer or say which command helps."""

import hashlib
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from edgewam.core.artifacts import write_artifact
from edgewam.core.errors import ArtifactError, ContractError, EdgewamError
from edgewam.models.text import SmallTextEncoder
from edgewam.models.text_cache import TextCache, cached_lengths
from edgewam.models.text_sources import embedded_now, open_text, policy_text
from edgewam.models.text_store import PROMPTS, read_prompts, write_prompts

TASK = "fold the towel"
LEN, DIM, WORDS = 8, 6, 3


@dataclass(frozen=True)
class Sizes:
    text_len: int = LEN
    text_dim: int = DIM


def rows(seed=0, words=WORDS, dim=DIM):
    """An embedding of a few words, exact in bf16, zero padded."""
    made = torch.zeros(LEN, dim)
    made[:words] = torch.randn(words, dim, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    return made.numpy()


def upstream_file(directory, task=TASK, context=None, mask=None):
    """What upstream's script writes: the encoder's output with its padding rows as they came out, and the mask."""
    prompt = f"A video recorded from a robot's point of view executing the following instruction: {task}"
    path = directory / f"{hashlib.sha256(prompt.encode('utf-8')).hexdigest()}.t5_len{LEN}.wan22ti2v5b.pt"
    context = torch.from_numpy(rows()) if context is None else context
    context = torch.where(context == 0, 7.0, context).bfloat16()
    torch.save({"context": context, "mask": torch.arange(LEN) < WORDS if mask is None else mask}, path)
    return path


def test_a_cache_file_of_upstream_is_read_and_its_padding_rows_count_as_zero(tmp_path):
    upstream_file(tmp_path)
    found = TextCache(tmp_path, LEN, DIM).encode(TASK)
    assert found.dtype == np.float32 and np.array_equal(found, rows())


def test_a_cache_file_of_ours_has_the_name_keys_and_dtypes_that_upstream_reads(tmp_path):
    path = TextCache(tmp_path / "cache", LEN, DIM).write(TASK, rows())
    assert path.name == upstream_file(tmp_path).name
    stored = torch.load(path, map_location="cpu", weights_only=True)
    assert stored.keys() == {"context", "mask"}
    assert stored["context"].dtype == torch.bfloat16 and stored["context"].shape == (LEN, DIM)
    assert stored["mask"].dtype == torch.bool and stored["mask"].tolist() == [True] * WORDS + [False] * (LEN - WORDS)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [path.name]


def test_the_released_length_and_encoder_are_part_of_the_name():
    name = TextCache("cache").path("x").name
    assert name.endswith(".t5_len128.wan22ti2v5b.pt") and len(name.split(".")[0]) == 64


def test_spaces_at_the_ends_of_a_task_find_upstreams_file_and_that_of_the_task_alone(tmp_path):
    cache = TextCache(tmp_path, LEN, DIM)
    upstream_file(tmp_path, " lift it ")
    assert cache.holds(" lift it ") and not cache.holds("lift it")
    cache.write("push it", rows(1))
    assert np.array_equal(cache.encode("push it \n"), rows(1))


def test_an_unknown_prompt_is_named_with_its_key_and_the_command(tmp_path):
    upstream_file(tmp_path)
    with pytest.raises(EdgewamError, match=r"'make tea'.*edgewam prompt add .* 'make tea' --text") as caught:
        TextCache(tmp_path, LEN, DIM).encode("make tea")
    assert TextCache(tmp_path, LEN, DIM).path("make tea").name in str(caught.value)
    with pytest.raises(EdgewamError, match=r"length \[8\], this policy takes 16"):
        TextCache(tmp_path, 16, DIM).encode(TASK)
    assert cached_lengths(tmp_path) == {LEN}


@pytest.mark.parametrize("task", ["", "  \n"])
def test_an_empty_instruction_is_refused(tmp_path, task):
    cache = TextCache(tmp_path, LEN, DIM)
    for use in (cache.encode, cache.path, lambda t: cache.write(t, rows())):
        with pytest.raises(ContractError, match="empty"):
            use(task)


def test_a_truncated_file_is_named_with_what_to_do(tmp_path):
    path = upstream_file(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ArtifactError, match=rf"{path.name}.*truncated or damaged. Delete it.*edgewam prompt cache"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    path.write_bytes(b"not a file of torch")
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_file_that_asks_for_code_is_refused_and_the_code_does_not_run(tmp_path):
    path = upstream_file(tmp_path)
    torch.save({"context": Attack(tmp_path / "owned"), "mask": torch.ones(LEN)}, path)
    with pytest.raises(ArtifactError, match=r"would run code of its maker\. It was not loaded"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    path.write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    with pytest.raises(ArtifactError):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Attack(tmp_path / "owned")))
    with pytest.raises(ArtifactError):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1, 2], "no named tensors"),
        ({"context": torch.ones(LEN, DIM)}, r"holds context \[8, 6\], but an embedding is"),
        ({"context": torch.ones(LEN, DIM), "mask": torch.ones(3)}, r"mask \[3\]"),
        ({"context": torch.ones(LEN, DIM, dtype=torch.int64), "mask": torch.ones(LEN)}, "an embedding is"),
        ({"context": torch.ones(LEN, DIM), "mask": True}, "mask bool"),
    ],
)
def test_another_form_is_refused_with_what_was_found(tmp_path, stored, message):
    torch.save(stored, upstream_file(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        TextCache(tmp_path, LEN, DIM).encode(TASK)


def test_embeddings_of_another_width_or_without_sense_are_refused(tmp_path):
    upstream_file(tmp_path, context=torch.ones(LEN, 9))
    with pytest.raises(ContractError, match=r"is \[8, 9\], but this policy takes \[8, 6\].*another text encoder"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    upstream_file(tmp_path, context=torch.full((LEN, DIM), torch.nan))
    with pytest.raises(ContractError, match="not finite"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    upstream_file(tmp_path, mask=torch.zeros(LEN, dtype=torch.bool))
    with pytest.raises(ContractError, match="no words"):
        TextCache(tmp_path, LEN, DIM).encode(TASK)
    with pytest.raises(ContractError, match="not finite"):
        TextCache(tmp_path, LEN, DIM).write("x", np.full((LEN, DIM), np.inf))
    with pytest.raises(ContractError, match="takes"):
        TextCache(tmp_path, LEN, DIM).write("x", np.ones((LEN, DIM + 1)))


def test_stored_prompts_come_back_bit_for_bit_and_take_bf16_where_that_is_exact(tmp_path):
    fine = rows() + np.float32(1e-3)
    written = {"a/b 'c' \N{SNOWMAN}": rows(), "fine": fine}
    write_prompts(tmp_path / PROMPTS, written)
    found = read_prompts(tmp_path / PROMPTS)
    assert found.keys() == written.keys() and all(np.array_equal(found[name], written[name]) for name in written)
    sizes = {}
    for name, array in written.items():
        write_prompts(tmp_path / "one", {name: array})
        sizes[name] = (tmp_path / "one").stat().st_size
    assert sizes["fine"] > rows().nbytes and sizes["a/b 'c' \N{SNOWMAN}"] < 200 < sizes["fine"]
    assert read_prompts(tmp_path / "nothing") == {}
    (tmp_path / PROMPTS).write_bytes(b"12345678{}")
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors.*Copy the policy again"):
        read_prompts(tmp_path / PROMPTS)


def test_a_source_is_found_by_what_it_is(tmp_path):
    upstream_file(tmp_path)
    assert open_text("small", Sizes()) == SmallTextEncoder(DIM, LEN)
    assert np.array_equal(open_text(tmp_path, Sizes()).encode(TASK), rows())
    policy = tmp_path / "policy"
    with write_artifact(policy, "policy", config={}) as directory:
        write_prompts(directory / PROMPTS, {TASK: rows(2)})
    for place in (policy, str(policy), policy / PROMPTS):
        assert np.array_equal(open_text(place, Sizes()).encode(TASK), rows(2))
    with pytest.raises(EdgewamError, match=r"no text source 'nothing'\. Give 'small'"):
        open_text("nothing", Sizes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x.txt").write_text("x")
    with pytest.raises(EdgewamError, match="is no text source"):
        open_text(tmp_path / "folder", Sizes())
    with write_artifact(tmp_path / "bare", "vae", config={}):
        pass
    with pytest.raises(ArtifactError, match="is a vae without embeddings"):
        open_text(tmp_path / "bare", Sizes())


def test_a_policy_speaks_with_its_own_encoder_only(tmp_path):
    upstream_file(tmp_path)
    policy = tmp_path / "policy"
    write_prompts(policy / PROMPTS, {"stored": rows(3)})
    assert policy_text(policy, "small", Sizes()) == SmallTextEncoder(DIM, LEN)
    with pytest.raises(EdgewamError, match="would mean nothing"):
        policy_text(policy, "small", Sizes(), tmp_path)
    with pytest.raises(EdgewamError, match="would mean nothing"):
        policy_text(policy, "umt5", Sizes(), "small")
    both = policy_text(policy, "umt5", Sizes(), tmp_path)
    assert np.array_equal(both.encode("stored"), rows(3)) and np.array_equal(both.encode(TASK), rows())
    with pytest.raises(EdgewamError, match=r"no stored embedding of 'dance' \(stored: 'stored'\).*edgewam prompt add"):
        policy_text(policy, "stored", Sizes()).encode("dance")
    with pytest.raises(ContractError, match="but this policy takes"):
        policy_text(policy, "stored", Sizes(text_dim=4)).encode("stored")


def test_instructions_embedded_now_need_no_encoder_any_more(tmp_path):
    upstream_file(tmp_path)
    kept = embedded_now(open_text(tmp_path, Sizes()), [TASK])
    shutil.rmtree(tmp_path)
    assert np.array_equal(kept.encode(TASK), rows()) and (kept.text_len, kept.text_dim) == (LEN, DIM)
    with pytest.raises(EdgewamError, match="'make tea'"):
        kept.encode("make tea")
    small = SmallTextEncoder()
    assert embedded_now(small, [TASK]) is small
