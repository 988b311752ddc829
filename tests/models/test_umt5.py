"""The UMT5 encoder computes what transformers' does, has Wan's keys at full size, and never looks at padding."""

import json

import pytest
import torch

from edgewam.models.umt5 import Umt5, Umt5Config, relative_buckets
from tests.golden import GOLDEN
from tests.models import umt5_reference

ATOL = 2e-5  # float32 sums of 150 terms in another order, values up to 4.4; the erf GELU makes 2e-3, another eps 2e-4
# bf16 sums are rounded in another order on another processor; the reference's own distance to float32 is the measure
BF16_SHARE = 0.75


@pytest.fixture(scope="module")
def reference():
    return umt5_reference.stored()


def rms(x):
    return x.float().square().mean().sqrt()


def test_padded_and_unpadded_texts_equal_transformers_in_float32(reference):
    net, arrays = reference
    ids, mask = arrays["ids"], arrays["mask"]
    found = net(ids, mask)
    torch.testing.assert_close(found[mask], arrays["float32"][mask], atol=ATOL, rtol=0)
    for row, length in enumerate(umt5_reference.TOKENS):
        alone = net(ids[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(alone[0], arrays["float32"][row, :length], atol=ATOL, rtol=0)


def test_bf16_rounds_where_transformers_rounds(reference):
    _, arrays = reference
    mask = arrays["mask"]
    short = umt5_reference.stored()[0].bfloat16()(arrays["ids"], mask)
    assert short.dtype == torch.bfloat16
    own = rms(arrays["bf16"][mask].float() - arrays["float32"][mask])
    assert rms(short[mask].float() - arrays["bf16"][mask].float()) < BF16_SHARE * own


def test_what_stands_in_the_padding_changes_nothing(reference):
    net, arrays = reference
    ids, mask = arrays["ids"], arrays["mask"]
    other = torch.where(mask, ids, 7)
    assert torch.equal(net(ids, mask)[mask], net(other, mask)[mask])


@pytest.mark.slow  # importing transformers takes seconds
def test_the_stored_reference_is_what_transformers_computes(reference):
    pytest.importorskip("transformers", reason="the stored arrays stand for it")
    arrays = umt5_reference.compute()
    assert arrays.keys() == reference[1].keys()
    for name, array in arrays.items():
        if name != "bf16":
            torch.testing.assert_close(array, reference[1][name], atol=ATOL, rtol=0)


def test_buckets_count_single_tokens_first_and_tell_before_from_after():
    buckets = relative_buckets(400, 32)
    assert buckets[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24] and buckets[8, :8].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    assert buckets[0, 127:].unique().tolist() == [31] and buckets[399, 0] == 15 and buckets.max() == 31
    assert torch.equal(buckets[3:, 3:], buckets[:-3, :-3])


def test_keys_and_shapes_at_full_size_are_those_of_wans_file():
    expected = json.loads((GOLDEN / "manifests/manifest_umt5_full.json").read_text())
    with torch.device("meta"):
        net = Umt5(Umt5Config())
    found = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert found == expected and len(found) == 242
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == 5_680_910_336  # facts/x_wam.md 2.8
