"""Texts are cleaned, ended, cut off and padded as upstream does, from either of the tokeniser's files."""

import io
import shutil

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models.umt5_tokenizer import Umt5Tokenizer, clean
from tests.models import tiny_umt5

tokenizers = pytest.importorskip("tokenizers", reason="needs edgewam[text]")
pytest.importorskip("ftfy", reason="needs edgewam[text]")

TEXT = tiny_umt5.SENTENCES[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_umt5.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Umt5Tokenizer.open(folder)


def test_pieces_are_followed_by_the_end_and_padding_up_to_the_length(folder, tokenizer):
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    expected = plain.encode(TEXT).ids
    assert expected[-1] == 1 and len(expected) > 8
    ids, mask = tokenizer(TEXT, 64)
    assert ids.dtype == np.int64 and mask.dtype == np.bool_
    assert ids.tolist() == expected + [0] * (64 - len(expected))
    assert mask.tolist() == [True] * len(expected) + [False] * (64 - len(expected))


def test_a_long_text_loses_its_end_but_not_the_end_token_and_says_so(folder, tokenizer):
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.enable_truncation(6)
    with pytest.warns(UserWarning, match=r"tokens; the last \d+ before its end are cut off"):
        ids, mask = tokenizer(TEXT, 6)
    assert ids.tolist() == plain.encode(TEXT).ids and mask.all()
    whole, _ = tokenizer(TEXT, 64)
    length = int((whole != 0).sum())
    assert tokenizer(TEXT, length)[0].tolist() == whole[:length].tolist()  # exactly as long: nothing is cut off, no warning


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  fold \t the\n\ntowel ", "fold the towel"),
        ("open &amp;lt;it&amp;gt; &quot;now&quot;", 'open <it> "now"'),
        ("the robot\u2019s \u201chand\u201d", 'the robot\'s "hand"'),
        ("caf\u00c3\u00a9", "caf\u00e9"),  # UTF-8 that was read as Latin-1
        ("a\u00a0b\u3000c", "a b c"),
    ],
)
def test_text_is_cleaned(text, cleaned):
    assert clean(text) == cleaned


def test_what_is_cleaned_away_does_not_change_the_ids(tokenizer):
    assert np.array_equal(tokenizer(f"  {TEXT.replace(' ', '   ')}\n", 64)[0], tokenizer(TEXT, 64)[0])
    with pytest.raises(ContractError, match="empty"):
        tokenizer(" \u00a0 ", 64)


def test_both_files_of_a_folder_give_the_same_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs edgewam[text]")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_umt5.SENTENCES), model_writer=model, vocab_size=55, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    pieces = Umt5Tokenizer.open(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    fast = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 2))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    fast.add_special_tokens(list(tiny_umt5.SPECIAL))
    (tmp_path / "fast").mkdir()
    fast.save(str(tmp_path / "fast/tokenizer.json"))
    fast = Umt5Tokenizer.open(tmp_path / "fast")
    assert pieces.vocab_size == fast.vocab_size == 55
    for text in (*tiny_umt5.SENTENCES[:4], "hand over  the towel"):
        assert np.array_equal(pieces(text, 64)[0], fast(text, 64)[0])


def test_the_folder_of_a_whole_download_is_found_and_one_without_files_says_which_are_needed(folder, tmp_path):
    inside = tmp_path / "Wan2.2-TI2V-5B/google/umt5-xxl"
    shutil.copytree(folder, inside)
    assert Umt5Tokenizer.open(tmp_path / "Wan2.2-TI2V-5B").vocab_size == Umt5Tokenizer.open(folder).vocab_size
    with pytest.raises(
        ArtifactError, match=r"neither tokenizer\.json nor spiece\.model is there. Give the folder google/umt5-xxl"
    ):
        Umt5Tokenizer.open(tmp_path)


def test_a_damaged_or_foreign_tokeniser_is_refused(folder, tmp_path):
    text = (folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text[:200])
    with pytest.raises(ArtifactError, match=r"tokenizer\.json'.*Copy google/umt5-xxl again"):
        Umt5Tokenizer.open(tmp_path)
    other = tokenizers.Tokenizer(tokenizers.models.Unigram([("</s>", 0.0), ("<pad>", 0.0), ("<unk>", 0.0)], 2))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match=r"ids \(1, 0\) for <pad> and </s>"):
        Umt5Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(b"nothing of the kind")
    pytest.importorskip("sentencepiece", reason="needs edgewam[text]")
    with pytest.raises(ArtifactError, match=r"spiece\.model'.*Copy google/umt5-xxl again"):
        Umt5Tokenizer.open(tmp_path)
