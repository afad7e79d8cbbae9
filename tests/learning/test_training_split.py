"""The split of training by the command: clusters, fractions, and leakage between splits."""

from pathlib import Path

import pytest
from support import fasta
from tiny_models import Toys, records, write_toys
from training_command import report, splits, train

from virnuc_async.models.bundle import find


def test_genomes_are_not_divided(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    # Each genome has two records.
    assert all(counts["records"] % 2 == 0 for counts in splits(tmp_path / "one").values())
    assert report(tmp_path / "one")["data"]["clusters"] == 40
    total = sum(counts["records"] for counts in splits(tmp_path / "one").values())
    assert total == 80


def test_fractions_of_the_splits(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work, "--validation", "0.3", "--test", "0.4").code == 0
    sizes = [counts["records"] for counts in splits(tmp_path / "one").values()]
    assert sizes == [24, 24, 32, 0]


def test_clusters_of_a_table_are_not_divided(toys: Toys, work: Path, tmp_path: Path) -> None:
    table = tmp_path / "c.tsv"
    table.write_text(
        "".join(f"{kind}g{number}\t{kind}{number % 4}\n" for kind in "vn" for number in range(20))
    )
    assert train(toys, tmp_path / "one", "--work", work, "--clusters", table).code == 0
    assert report(tmp_path / "one")["data"]["clusters"] == 8
    assert report(tmp_path / "one")["data"]["clustered_by"] == "c.tsv"
    assert all(counts["records"] % 10 == 0 for counts in splits(tmp_path / "one").values())


def test_published_split_warns_of_optimistic_results(toys: Toys, work: Path, tmp_path: Path) -> None:
    long = write_toys(tmp_path / "long", 12, 2000)
    output = tmp_path / "one"
    ended = train(long, output, "--split-by-fragment")
    assert ended.code == 0
    assert "WARNING: fragments are split at random, as published: " in ended.err
    assert "the results are optimistic" in ended.err
    assert "**These results are optimistic.**" in (output / "README.md").read_text()
    assert report(output)["split"]["by_fragment"] is True
    assert report(output)["split"]["leakage"] is None
    assert "random split of fragments" in find(output).notice
    # Records are in several splits, fragments in one.
    assert sum(counts["records"] for counts in splits(output).values()) > 24
    assert sum(counts["fragments"] for counts in splits(output).values()) == 96


@pytest.fixture
def leaking(tmp_path: Path) -> Toys:
    """Records of which every virus contains 60 bases of the first."""
    toys = write_toys(tmp_path / "leaking", 20, 300)
    viruses = list(records(True, 20, 300, 0))
    shared = viruses[0][1][60:120]
    toys.viral.write_text(fasta([(name, bases[:90] + shared + bases[150:]) for name, bases in viruses]))
    return toys


def test_leaking_records_are_dropped_kept_or_refused(leaking: Toys, tmp_path: Path) -> None:
    work = ("--work", tmp_path / "work")
    assert train(leaking, tmp_path / "no", *work, "--leakage", "refuse") == (
        1,
        "",
        "searching for 31-mers that held-out records share with training records\n"
        "virnuc-async: 6 of 12 held-out records share 31-mers with training records, so metrics on them "
        "would be optimistic. Cluster the sequences and give the table with --clusters, or leave these "
        "records out with --leakage drop\n",
    )
    assert not (tmp_path / "work").exists()
    ended = train(leaking, tmp_path / "no", *work)
    assert ended.code == 1
    assert "6 of 12 held-out records share 31-mers with training records and are left out" in ended.err
    assert ended.err.endswith("nothing viral in the ORFs for validation: both classes are needed\n")
    ended = train(leaking, tmp_path / "kept", *work, "--leakage", "keep")
    assert ended.code == 0
    assert "WARNING: 6 of 12 held-out records share 31-mers with training records and are kept: " in ended.err
    assert "**These results are optimistic.**" in (tmp_path / "kept" / "README.md").read_text()
    leakage = report(tmp_path / "kept")["split"]["leakage"]
    assert leakage == {"length": 31, "held_out_records": 12, "sharing": 6, "done": "keep"}
    ended = train(leaking, tmp_path / "some", *work, "--leakage-share", "0.5")
    assert ended.code == 0
    assert "0 of 12 held-out records share" in ended.err


def test_only_leaking_records_are_dropped(tmp_path: Path) -> None:
    toys = write_toys(tmp_path / "toys", 40, 300)
    viruses = list(records(True, 40, 300, 0))
    shared = viruses[0][1][30:270]
    # One record of each genome, which is half of the held-out records.
    half_leaking = [
        (name, bases[:30] + shared + bases[270:] if at % 2 else bases)
        for at, (name, bases) in enumerate(viruses)
    ]
    toys.viral.write_text(fasta(half_leaking))
    assert train(toys, tmp_path / "one").code == 0
    found = splits(tmp_path / "one")
    assert found["left out"]["records"] == report(tmp_path / "one")["split"]["leakage"]["sharing"] == 6
    assert "6 of 24 held-out records share more than 0%" in (tmp_path / "one" / "README.md").read_text()
