import json
from pathlib import Path

import esm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import DATA, beside, ragged, read_embeddings

from virnuc_async.sequences.tokens import CLS, EOS, ESM2_ALPHABET, UNKNOWN, OrfTokenizer, Ragged

UNK, BOS, SEP = 0, 1, 2  # DNABERT-S's
DNA = st.text("ACGT", min_size=1, max_size=80).map(str.encode)


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> OrfTokenizer:
    return OrfTokenizer((golden / "upstream/models/dnabert/tokenizer.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def published() -> OrfTokenizer:
    return OrfTokenizer((beside("tokenizer") / "tokenizer.json").read_text("utf-8"))


def rows(tokens: Ragged) -> list[list[int]]:
    """Take *tokens* apart, the slow way."""
    ids, found = tokens.ids.tolist(), []
    for length in tokens.lengths.tolist():
        found.append(ids[:length])
        ids = ids[length:]
    assert ids == []
    return found


# Residues


def test_the_alphabet_is_fair_esms():
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    assert list(ESM2_ALPHABET) == alphabet.all_toks
    assert (alphabet.cls_idx, alphabet.eos_idx, alphabet.unk_idx) == (CLS, EOS, UNKNOWN)


def test_residues_are_encoded_as_fair_esm_does():
    proteins = ["LAGVSERTIDPKQNFYMHWCXBUZO", "M", "ACDEFGHIKLMNPQRSTVWY" * 80]
    convert = esm.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    tokens = OrfTokenizer.residues(None, [text.encode() for text in proteins])
    for text, found in zip(proteins, rows(tokens), strict=True):
        assert found == convert([("", text)])[2][0].tolist()
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.dtype == np.int64


def test_a_letter_that_esm_does_not_know(tokenizer: OrfTokenizer):
    assert rows(tokenizer.residues([b"MJ*m"])) == [[CLS, ESM2_ALPHABET.index("M"), *[UNKNOWN] * 3, EOS]]


# Bases


@pytest.mark.parametrize("name", ["tiny_h48_l2_a6", "tiny_h64_l3_a4", "tiny_h96_l2_a12"])
def test_the_published_tokenizer_gives_the_published_tokens(golden: Path, published, name: str):
    described = json.loads((golden / "dnabert" / f"{name}.json").read_bytes())
    wanted = np.load(golden / "dnabert" / f"{name}.npz")
    cases = [case for case in described["cases"] if case["dna"]]
    assert len(cases) == 7
    found = rows(published.nucleotides([case["dna"].encode() for case in cases]))
    assert found == [wanted[f"{case['name']}/ids"].tolist() for case in cases]
    assert [len(row) for row in found] == [case["n_tokens"] for case in cases]


def test_the_published_vocabulary(published: OrfTokenizer):
    assert published.vocabulary == 4096


@pytest.mark.parametrize("which", ["tokenizer", "published"])
@pytest.mark.parametrize("bases", [b"N", b"NNNNN", b"RYSWKMBDHVX", b"acgt", b"nnn"])
def test_a_letter_outside_acgt_is_one_unknown_token(which: str, bases: bytes, request):
    found = request.getfixturevalue(which).nucleotides([bases])
    assert rows(found) == [[BOS, *[UNK] * len(bases), SEP]]


@pytest.mark.parametrize("which", ["tokenizer", "published"])
def test_unknown_letters_stand_between_whole_tokens(which: str, request):
    used = request.getfixturevalue(which)
    (left,), (right,) = rows(used.nucleotides([b"ACGTACCA"])), rows(used.nucleotides([b"TTTGA"]))
    assert rows(used.nucleotides([b"ACGTACCANNTTTGA"])) == [[*left[:-1], UNK, UNK, *right[1:]]]


@pytest.mark.parametrize("which", ["tokenizer", "published"])
def test_nothing_is_cut_off_or_padded(which: str, request):
    tokens = request.getfixturevalue(which).nucleotides([b"N" * 5_000, b"A"])
    assert tokens.lengths.tolist() == [5_002, 3]
    assert tokens.ids[:5_002].tolist() == [BOS, *[UNK] * 5_000, SEP]


@given(st.lists(DNA, max_size=6))
def test_tokens_spell_the_bases(texts: list[bytes]):
    path = DATA / "golden/upstream/models/dnabert/tokenizer.json"
    spelling = {number: token for token, number in json.loads(path.read_bytes())["model"]["vocab"].items()}
    found = rows(OrfTokenizer(path.read_text("utf-8")).nucleotides(texts))
    assert [(row[0], row[-1]) for row in found] == [(BOS, SEP)] * len(texts)
    assert ["".join(spelling[token] for token in row[1:-1]).encode() for row in found] == texts


def test_a_batch_is_encoded_as_one_at_a_time(expected: Path, tokenizer: OrfTokenizer):
    texts = [line for line in (expected / "nucleotide.fa").read_bytes().split() if line[:1] != b">"]
    assert len(texts) == len(read_embeddings(expected)[0])
    together = rows(tokenizer.nucleotides(texts))
    assert together == [rows(tokenizer.nucleotides([text]))[0] for text in texts]


def test_no_sequences(tokenizer: OrfTokenizer):
    assert len(tokenizer.nucleotides([])) == len(tokenizer.residues([])) == 0
    assert tokenizer.nucleotides([]).ids.tolist() == tokenizer.residues([]).ids.tolist() == []


# Rows


@given(st.lists(st.lists(st.integers(0, 4095), max_size=9), max_size=9), st.data())
def test_rows_are_taken_as_from_a_list(lists: list[list[int]], data: st.DataObject):
    chosen = data.draw(st.lists(st.sampled_from(range(len(lists))), max_size=12)) if lists else []
    taken = ragged(lists).take(np.array(chosen, np.int64))
    assert rows(taken) == [lists[number] for number in chosen]
    assert len(taken) == len(chosen)
    assert taken.ids.dtype == np.int32
