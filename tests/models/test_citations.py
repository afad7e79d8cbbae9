"""What is to be cited stands in one place; CITATION.cff and the README say the same."""

import re

import pytest
import yaml
from running import ROOT

from virnuc_async import __version__
from virnuc_async.models.citations import DNABERT_S, ESM_2, PUBLICATIONS, VIRNUCPRO, Publication

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
each_publication = pytest.mark.parametrize("publication", PUBLICATIONS, ids=lambda p: p.key)


def test_a_publication_is_written_as_journals_write_it() -> None:
    assert str(VIRNUCPRO) == (
        "Li J, Mi J, Lin W, Tian F, Wan J, Gao J, Tong Y. VirNucPro: an identifier for the identification of "
        "viral short sequences using six-frame translation and large language models. "
        "Briefings in Bioinformatics 2025;26(3):bbaf224. doi:10.1093/bib/bbaf224"
    )
    assert (ESM_2.short, DNABERT_S.short) == ("Lin et al. 2023", "Zhou et al. 2025")
    assert ESM_2.url == "https://doi.org/10.1126/science.ade2574"
    assert "dos Santos Costa A, Fazel-Zarandi M" in str(ESM_2)


@each_publication
def test_the_citation_file_names_it(publication: Publication) -> None:
    (entry,) = (entry for entry in CITATION["references"] if entry["doi"] == publication.doi)
    authors = [(author["family-names"], author["given-names"]) for author in entry["authors"]]
    assert authors == list(publication.authors)
    pages = "-".join(str(entry[name]) for name in ("start", "end") if name in entry)
    values = (
        entry["title"],
        entry["journal"],
        entry["year"],
        str(entry["volume"]),
        str(entry["issue"]),
        pages,
    )
    assert values == (
        publication.title,
        publication.journal,
        publication.year,
        publication.volume,
        publication.issue,
        publication.pages,
    )
    assert entry["notes"] == publication.cited_for


@each_publication
def test_the_readme_names_it(publication: Publication) -> None:
    _, _, section = (ROOT / "README.md").read_text("utf-8").partition("\n## Citation\n")
    assert f"{publication.key} (" in section
    assert publication.doi in section


def test_the_citation_file_is_of_this_version() -> None:
    assert CITATION["version"] == __version__
    assert len(CITATION["references"]) == len(PUBLICATIONS)


def test_the_citation_file_holds_nothing_that_is_no_citation() -> None:
    known = {
        "cff-version",
        "message",
        "type",
        "title",
        "abstract",
        "version",
        "license",
        "authors",
        "keywords",
    }
    assert set(CITATION) - known == {"references"}
    assert re.fullmatch(r"1\.2\.\d", CITATION["cff-version"])
