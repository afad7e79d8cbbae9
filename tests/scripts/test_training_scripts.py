"""The scripts that make ``tiny-500``: their data, the sampler, and that the result is a usable model."""

import gzip
from pathlib import Path

import blend_tiny
import label_genomes
import numpy as np
import pytest
import torch
import train_tiny
from genomes import Piece, _piece, read_pieces, reverse_complement
from hypothesis import given
from hypothesis import strategies as st
from running import predict
from safetensors.torch import load_file
from subsequences import Sampler, _draw_probabilities, diverge, hide
from support import ROOT, read_table

from virnuc_async.models.bundle import find
from virnuc_async.networks.rotary import rotary_angles
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import ESM2_ALPHABET, OrfTokenizer

EXAMPLE = ROOT / "docs" / "examples"
NETWORK = "--layers 1 --protein-width 32 --nucleotide-width 32 --intermediate 16 --hidden 8"


@pytest.fixture(scope="session")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example's contigs in the format of the training data, every third held out."""
    directory = tmp_path_factory.mktemp("genomes")
    are_viral = {row[0]: row[2] == "virus" for row in read_table(EXAMPLE / "metagenome.tsv")[1:]}
    records: dict[tuple[str, str], list[str]] = {}
    for number, contig in enumerate(read_contigs(str(EXAMPLE / "metagenome.fa.gz"))):
        id, bases = contig.id.decode(), contig.bases.decode()
        split = "val" if number % 3 == 0 else "train"
        kind, source = ("viral", "Some phage") if are_viral[id] else ("nonviral", "Oryza sativa")
        header = f">{id} {source} genome={number // 2} [package=example]"
        records.setdefault((split, kind), []).append(f"{header}\n{bases.lower()}\n")
    for (split, kind), lines in records.items():
        with gzip.open(directory / f"{split}.{kind}.fna.gz", "wt") as file:
            file.writelines(lines)
    return directory


@pytest.mark.parametrize(
    ("source", "viral", "group"),
    [
        ("Oryza sativa (syntenic block)", False, "plants"),
        ("Xanthomonas oryzae pv. oryzae PXO99A", False, "bacteria"),
        ("Methanocella arvoryzae MRE50", False, "archaea"),
        ("Drosophila melanogaster chr2R", False, "invertebrates"),
        ("Wolbachia endosymbiont of Drosophila melanogaster", False, "bacteria"),
        ("Abisara fylloides mitochondrion", False, "mitochondria"),
        ("Aeolesthes oenochrous mitochondrial DNA", False, "mitochondria"),
        ("Candidatus Midichloria mitochondrii IricVA", False, "bacteria"),
        ("Shigella sonnei 53G plasmid A", False, "plasmids"),
        ("eukaryotic microbe (species not resolved)", False, "microbial eukaryotes"),
        ("Methanobacterium phage psiM2", True, "archaeal viruses"),
        ("Escherichia phage Bas05 (BASEL collection)", True, "phages"),
        ("Rice stripe virus", True, "other viruses"),
    ],
)
def test_a_record_belongs_to_the_group_of_its_organism(source: str, viral: bool, group: str) -> None:
    piece = _piece(f">id {source} [package=some]", b"ACGT", viral)
    assert (piece.group, piece.source) == (group, source)


def test_tables_have_each_records_genome_and_group(
    genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["label", "--genomes", str(genomes), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    label_genomes.main()
    pieces = read_pieces(genomes, "val")
    assert len(pieces) == 20
    kinds = {True: "virus", False: "other"}
    assert read_table(tmp_path / "clusters.tsv") == [[p.id, f"{kinds[p.viral]}: {p.genome}"] for p in pieces]
    assert read_table(tmp_path / "groups.tsv") == [[p.id, p.group] for p in pieces]


def test_subsequences_are_of_both_strands_and_half_of_them_viral(genomes: Path) -> None:
    # An ORF has no codons with other letters.
    pieces = [p for p in read_pieces(genomes, "train") if set(p.bases) <= set(b"ACGT")]
    sampler = Sampler(pieces, np.random.default_rng(1))
    examples = sampler.examples(2000, 300)
    strands = {True: b"", False: b""}
    for piece in pieces:
        strands[True] += piece.bases + b"|"
        strands[False] += reverse_complement(piece.bases) + b"|"
    assert {len(example.orf.bases) for example in examples} == {298, 300}
    are_forward = [example.orf.bases in strands[True] for example in examples]
    assert all(
        forward or example.orf.bases in strands[False]
        for forward, example in zip(are_forward, examples, strict=True)
    )
    assert 0.3 < np.mean(are_forward) < 0.7  # genes have more frames on one strand
    assert 0.3 < np.mean([example.viral for example in examples]) < 0.7
    numbers = {
        (p.viral, sampler.groups[p.viral, p.group], sampler.genomes[p.viral, p.genome]) for p in pieces
    }
    assert {(e.viral, e.group, e.genome) for e in examples} <= numbers


def test_genomes_and_groups_have_shares_by_the_root_of_their_size() -> None:
    sizes = {("a", "1"): 900, ("a", "2"): 100, ("b", "3"): 4000}
    pieces = [
        Piece(g, g, g, group, viral, b"A" * size)
        for viral in (True, False)
        for (group, g), size in sizes.items()
    ]
    # Groups of 1,000 and 4,000 bases have shares of 1 to 2, genomes of 900 and 100 bases of 3 to 1.
    expected = [0.5 * share for share in (0.25, 0.25 / 3, 2 / 3)]
    assert _draw_probabilities(pieces).tolist() == pytest.approx(expected * 2)


@given(st.lists(st.text("ARNDCQEGHILKMFPSTWYVX", min_size=1, max_size=60), min_size=1), st.integers(0, 99))
def test_masked_or_substituted_proteins_keep_their_length(proteins: list[str], seed: int) -> None:
    residues = OrfTokenizer(train_tiny.codon_pairs()).residues([p.encode() for p in proteins])
    changed = diverge(residues, 1.0, np.random.default_rng(seed))
    assert changed.lengths.tolist() == residues.lengths.tolist()
    known = {ESM2_ALPHABET.index(letter) for letter in "ARNDCQEGHILKMFPSTWYV"}
    are_known = np.isin(residues.ids, list(known))
    assert set(changed.ids[are_known].tolist()) <= known
    assert (changed.ids[~are_known] == residues.ids[~are_known]).all()
    assert (diverge(residues, 0.0, np.random.default_rng(seed)).ids == residues.ids).all()
    hidden = hide(residues, 1.0, 32, np.random.default_rng(seed))
    assert (hidden.ids == np.where(residues.ids >= 4, 32, residues.ids)).all()


def test_residues_are_substituted_by_their_odds() -> None:
    tokens = OrfTokenizer(train_tiny.codon_pairs())
    residues = tokens.residues([b"I" * 400] * 200)
    changed = diverge(residues, 1.0, np.random.default_rng(0)).ids
    letters = np.array(ESM2_ALPHABET)[changed[np.isin(changed, [0, 2], invert=True)]]
    shares = {letter: (letters == letter).mean() for letter in "IVLMFW"}
    assert shares["I"] == pytest.approx(0.5, abs=0.06)  # the rate is between 0 and 1 for each sequence
    assert shares["V"] > shares["L"] > shares["F"] > shares["M"] > shares["W"]


def test_codon_pairs_keep_the_frame() -> None:
    definition = train_tiny.codon_pairs()
    tokens = OrfTokenizer(definition)
    names = {number: word for word, number in tokens._bases.get_vocab().items()}

    def words(bases: bytes) -> list[str]:
        return [names[number] for number in tokens.nucleotides([bases]).ids.tolist()]

    assert tokens.vocabulary == 5 + 4 + 16 + 64 + 4096
    assert words(b"ACGTTTGGA") == ["[CLS]", "ACGTTT", "GGA", "[SEP]"]
    assert words(b"ACGTTTG") == ["[CLS]", "ACGTTT", "G", "[SEP]"]
    assert words(b"ACGTTTGGATC") == ["[CLS]", "ACGTTT", "GGA", "TC", "[SEP]"]
    assert words(b"ANGTTTGGATCC") == ["[CLS]", "[UNK]", "TTTGGA", "TCC", "[SEP]"]
    assert words(b"ACGTNTGGATCC") == ["[CLS]", "ACG", "[UNK]", "GGATCC", "[SEP]"]


def test_heads_attend_to_their_neighbours_initially() -> None:
    """A residue attends most to the one at the offset of the head, whatever the residues are."""
    options = train_tiny._arguments(["--genomes", "."])
    network = train_tiny.Tiny(train_tiny._shapes(options, 4185))
    layer = network.protein.layers[0]
    q, k, _ = layer.pre_attention(torch.zeros(30, 64), rotary_angles(torch.arange(30), 16))
    nearest = torch.einsum("thd,shd->hts", q, k)[:, 15].argmax(1)
    assert (nearest[:3] - 15).tolist() == [1, -1, 2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_arguments_train_the_same_model(genomes: Path, tmp_path: Path, processes: int) -> None:
    common = f"--genomes {genomes} --steps 4 --keep 2 --rows 16 --processes {processes} {NETWORK}"
    for name in ("a", "b"):
        train_tiny.main([*common.split(), "--output", str(tmp_path / name / "tiny")])
    files = [sorted(_contents(tmp_path / name)) for name in ("a", "b")]
    assert files[0] == files[1]
    bundles = {str(path.parent) for path, _ in files[0]}
    assert bundles == {"tiny", "tiny.step-2"}
    find(tmp_path / "a" / "tiny").check()
    ran = predict(EXAMPLE / "metagenome.fa.gz", tmp_path / "out", "--model", tmp_path / "a" / "tiny")
    assert ran.code == 0
    scores = [float(row[3]) for row in read_table(tmp_path / "out" / "prediction_results.txt")[1:]]
    assert 0 < min(scores) < max(scores) < 1


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_training_continues_from_a_bundle_and_bundles_are_averaged(genomes: Path, tmp_path: Path) -> None:
    common = f"--genomes {genomes} --rows 16 --processes 1 {NETWORK}".split()
    first, second, mean = (tmp_path / name / "tiny" for name in ("first", "second", "mean"))
    train_tiny.main([*common, "--steps", "2", "--output", str(first)])
    train_tiny.main(
        [*common, "--steps", "1", "--start", str(first), "--rate", "1e-9", "--output", str(second)]
    )
    blend_tiny.main([str(first), str(second), "--output", str(mean)])
    find(mean).check()
    for part in train_tiny.PARTS:
        before, after, between = (
            load_file(directory / f"{part}.safetensors") for directory in (first, second, mean)
        )
        for name, tensor in between.items():
            if "running" not in name and tensor.is_floating_point():
                torch.testing.assert_close(
                    after[name], before[name], atol=1e-6, rtol=0
                )  # it continued from there
                torch.testing.assert_close(tensor, (before[name] + after[name]) / 2)
    assert (mean / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def _contents(directory: Path) -> list[tuple[Path, bytes]]:
    return [(p.relative_to(directory), p.read_bytes()) for p in directory.rglob("*") if p.is_file()]
