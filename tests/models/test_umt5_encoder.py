"""The text_encoder artifact embeds an instruction in its sentence, and what does not belong together is refused."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models.text import prompt_of
from edgewam.models.text_cache import TextCache
from edgewam.models.text_sources import open_text
from edgewam.models.umt5_encoder import load_text_encoder, save_text_encoder
from tests.models import tiny_umt5

pytest.importorskip("tokenizers", reason="needs edgewam[text]")
pytest.importorskip("ftfy", reason="needs edgewam[text]")

LEN = 96
TASK = "fold the towel"
BF16_RTOL = 2**-6  # of the largest value: matrices of padded and unpadded rows are summed in another order, 8-bit mantissa


@dataclass(frozen=True)
class Sizes:
    text_len: int = LEN
    text_dim: int = tiny_umt5.CONFIG.dim


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_umt5.make_artifact(tmp_path_factory.mktemp("umt5") / "text")


def test_rows_are_those_of_the_whole_padded_sentence_and_zero_behind_it(artifact):
    encoder = load_text_encoder(artifact, LEN)
    rows = encoder.encode(TASK)
    ids, mask = encoder.tokenizer(prompt_of(TASK), LEN)
    with torch.inference_mode():
        expected = tiny_umt5.make_network()(torch.from_numpy(ids)[None], torch.from_numpy(mask)[None])[0].float().numpy()
    assert rows.shape == (LEN, tiny_umt5.CONFIG.dim) and rows.dtype == np.float32
    assert 10 < mask.sum() < LEN and not rows[~mask].any() and expected[~mask].any()
    np.testing.assert_allclose(rows[mask], expected[mask], rtol=0, atol=BF16_RTOL * np.abs(expected).max())
    assert np.array_equal(rows, encoder.encode(f"  {TASK} \n"))
    assert not np.array_equal(rows, encoder.encode("fold the basket"))


def test_the_artifact_says_what_it_is_and_its_weights_stay_bf16(artifact):
    manifest = read_manifest(artifact, kind="text_encoder")
    assert {"model.json", "model.safetensors", "tokenizer/tokenizer.json"} == manifest.files.keys()
    network = load_text_encoder(artifact).network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16} and not network.training


def test_every_source_of_the_same_embedding_gives_the_same_rows(artifact, tmp_path):
    rows = open_text(artifact, Sizes()).encode(TASK)
    cache = TextCache(tmp_path, LEN, tiny_umt5.CONFIG.dim)
    cache.write(TASK, rows)
    assert np.array_equal(open_text(tmp_path, Sizes()).encode(TASK), rows)  # bf16 values: nothing is rounded


def test_another_width_or_an_empty_instruction_is_refused(artifact):
    with pytest.raises(ContractError, match="rows of width 16, this policy takes 4096"):
        open_text(artifact, replace(Sizes(), text_dim=4096))
    with pytest.raises(ContractError, match="empty"):
        load_text_encoder(artifact).encode(" ")


def test_a_tokeniser_with_more_pieces_than_the_weights_is_refused_before_anything_is_written(artifact, tmp_path):
    small = replace(tiny_umt5.CONFIG, vocab_size=20)
    with pytest.raises(ContractError, match="do not belong together"):
        save_text_encoder(tmp_path / "out", small, artifact / "tokenizer", lambda directory: None)
    with pytest.raises(ArtifactError, match="holds no tokeniser"):
        save_text_encoder(tmp_path / "out", tiny_umt5.CONFIG, tmp_path, lambda directory: None)
    assert not list(tmp_path.iterdir())


def test_damaged_weights_are_refused(artifact, tmp_path):
    broken = tiny_umt5.make_network()
    broken.blocks[1].ffn.fc2.weight[0, 0] = torch.nan
    out = tiny_umt5.make_artifact(tmp_path / "nan", broken)
    with pytest.raises(ContractError, match="not finite"):
        load_text_encoder(out).encode(TASK)

    def without_norm(directory):
        tensors = {name: tensor for name, tensor in broken.state_dict().items() if name != "norm.weight"}
        save_file(tensors, directory / "model.safetensors")

    save_text_encoder(tmp_path / "part", tiny_umt5.CONFIG, artifact / "tokenizer", without_norm)
    with pytest.raises(ArtifactError, match=r"'norm\.weight' is missing"):
        load_text_encoder(tmp_path / "part")
    sizes = json.loads((artifact / "model.json").read_text())
    assert sizes["family"] == "umt5" and sizes["config"]["dim"] == 16
