from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fasta, pieces

from virnuc_async.sequences.orfs import Frame, Orf, open_frames

# NCBI translation table 1, as a textbook has it.
RESIDUES = {
    "F": "TTT TTC",
    "L": "TTA TTG CTT CTC CTA CTG",
    "I": "ATT ATC ATA",
    "M": "ATG",
    "V": "GTT GTC GTA GTG",
    "S": "TCT TCC TCA TCG AGT AGC",
    "P": "CCT CCC CCA CCG",
    "T": "ACT ACC ACA ACG",
    "A": "GCT GCC GCA GCG",
    "Y": "TAT TAC",
    "*": "TAA TAG TGA",
    "H": "CAT CAC",
    "Q": "CAA CAG",
    "N": "AAT AAC",
    "K": "AAA AAG",
    "D": "GAT GAC",
    "E": "GAA GAG",
    "C": "TGT TGC",
    "W": "TGG",
    "R": "CGT CGC CGA CGG AGA AGG",
    "G": "GGT GGC GGA GGG",
}
RESIDUE_OF = {codon.encode(): residue for residue, codons in RESIDUES.items() for codon in codons.split()}
COMPLEMENT = {b"A": b"T", b"C": b"G", b"G": b"C", b"T": b"A"}

LETTERS = st.sampled_from([bytes([letter]) for letter in b"ACGTACGTACGTacgtNnRYKMSWXU-\0\xe9"])
DNA = st.lists(LETTERS, max_size=60).map(b"".join)


def slow_orfs(fragment: bytes) -> list[Orf]:
    """The published rule, one codon after the other."""
    forward = [bytes([letter]) for letter in fragment.upper()]
    reverse = [COMPLEMENT.get(letter, letter) for letter in reversed(forward)]
    found = []
    for frame in Frame:
        strand = b"".join(forward if frame < Frame.R1 else reverse)
        codons = [strand[at : at + 3] for at in range(frame % 3, len(strand) - 2, 3)]
        protein = "".join(RESIDUE_OF.get(codon, "") for codon in codons)
        if protein and "*" not in protein:
            bases = strand[frame % 3 : frame % 3 + 3 * len(protein) + 1]
            found.append(Orf(frame, protein.encode(), bases))
    return found


def orfs(bases: bytes) -> list[Orf]:
    return list(open_frames(bases, [(0, len(bases))]))


def test_the_published_orfs_byte_for_byte(golden: Path, expected: Path, length: int):
    found = [
        (f"{piece.id}{orf.frame.name}", orf)
        for piece in pieces(golden / "upstream" / "input.fa", length)
        for orf in piece.orfs
    ]
    proteins = fasta((name, orf.protein.decode()) for name, orf in found)
    bases = fasta((name, orf.bases.decode()) for name, orf in found)
    assert proteins == (expected / "protein.faa").read_text("ascii")
    assert bases == (expected / "nucleotide.fa").read_text("ascii")


def test_every_codon():
    assert len(RESIDUE_OF) == 64
    for codon, residue in RESIDUE_OF.items():
        first = [orf for orf in orfs(codon) if orf.frame is Frame.F1]
        assert first == ([] if residue == "*" else [Orf(Frame.F1, residue.encode(), codon)])


def test_all_six_frames_of_a_short_sequence():
    assert orfs(b"GCGTATG") == [
        Orf(Frame.F1, b"AY", b"GCGTATG"),
        Orf(Frame.F2, b"RM", b"CGTATG"),
        Orf(Frame.F3, b"V", b"GTAT"),
        Orf(Frame.R1, b"HT", b"CATACGC"),
        Orf(Frame.R2, b"IR", b"ATACGC"),
        Orf(Frame.R3, b"Y", b"TACG"),
    ]


@pytest.mark.parametrize("bases", [b"", b"A", b"AC", b"NNNNNN", b"TAATTAATTAATTA"])
def test_no_orf(bases: bytes):
    assert orfs(bases) == []


def test_a_codon_with_an_unknown_letter_is_dropped_and_shortens_the_bases_too():
    first = next(iter(orfs(b"ATGNCCAAATAG"[:9] + b"GGG")))
    assert first == Orf(Frame.F1, b"MKG", b"ATGNCCAAAG")


def test_a_stop_with_an_unknown_letter_is_no_stop():
    assert orfs(b"TANATG")[0] == Orf(Frame.F1, b"M", b"TANA")


def test_one_base_more_than_the_codons_where_there_is_one():
    assert [orf.bases for orf in orfs(b"AAAAAA") if orf.frame < Frame.R1] == [b"AAAAAA", b"AAAA", b"AAAA"]


def test_lower_case_is_read_as_upper_case():
    assert orfs(b"atggcn") == orfs(b"ATGGCN")


def test_letters_outside_acgt_are_their_own_complement():
    assert orfs(b"RATGCA")[-1].bases == b"CATR"
    assert Orf(Frame.R1, b"C", b"TGCA") in orfs(b"RATGCA")


@given(DNA)
def test_a_whole_contig_is_translated_as_the_slow_rule_says(bases: bytes):
    assert orfs(bases) == slow_orfs(bases)


@given(DNA, st.data())
def test_a_part_of_a_contig_is_translated_as_if_it_stood_alone(bases: bytes, data: st.DataObject):
    start = data.draw(st.integers(0, len(bases)))
    end = data.draw(st.integers(start, len(bases)))
    assert list(open_frames(bases, [(start, end)])) == slow_orfs(bases[start:end])


@given(DNA, st.data())
def test_fragments_in_any_number_and_order_are_translated_as_each_alone(bases: bytes, data: st.DataObject):
    places = st.integers(0, len(bases))
    ranges = data.draw(
        st.lists(st.tuples(places, places).map(lambda pair: (min(pair), max(pair))), max_size=9)
    )
    found = open_frames(bases, ranges)
    assert list(zip(found.fragments.tolist(), found, strict=True)) == [
        (number, orf) for number, (start, end) in enumerate(ranges) for orf in slow_orfs(bases[start:end])
    ]
