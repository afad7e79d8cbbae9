"""The publications behind a prediction, to be cited for the method and for the networks of its models."""

from dataclasses import dataclass
from typing import NamedTuple


class Author(NamedTuple):
    """One author of a publication."""

    family: str
    given: str


@dataclass(frozen=True, slots=True)
class Publication:
    """An article in a journal. *cited_for* says what of a prediction it describes."""

    key: str
    cited_for: str
    authors: tuple[Author, ...]
    title: str
    journal: str
    year: int
    volume: str
    issue: str
    pages: str  # of an electronic journal: the number of the article
    doi: str

    @property
    def url(self) -> str:
        """Return the address of the article."""
        return f"https://doi.org/{self.doi}"

    @property
    def short(self) -> str:
        """Return the authors and the year, as a text names it: ``Li et al. 2025``."""
        return f"{self.authors[0].family} et al. {self.year}"

    def __str__(self) -> str:
        names = ", ".join(f"{family} {_initials(given)}" for family, given in self.authors)
        place = f"{self.journal} {self.year};{self.volume}({self.issue}):{self.pages}"
        return f"{names}. {self.title}. {place}. doi:{self.doi}"


def _initials(given: str) -> str:
    return "".join(name[0] for name in given.split())


def _authors(names: str) -> tuple[Author, ...]:
    """Return the authors of *names*, ``Family, Given; Family, Given``."""
    return tuple(Author(*name.split(", ")) for name in names.split("; "))


VIRNUCPRO = Publication(
    key="VirNucPro",
    cited_for="the method, and the classifiers of the published models",
    authors=_authors("Li, Jing; Mi, Jia; Lin, Wei; Tian, Fengjuan; Wan, Jing; Gao, Jingyang; Tong, Yigang"),
    title=(
        "VirNucPro: an identifier for the identification of viral short sequences using six-frame "
        "translation and large language models"
    ),
    journal="Briefings in Bioinformatics",
    year=2025,
    volume="26",
    issue="3",
    pages="bbaf224",
    doi="10.1093/bib/bbaf224",
)
ESM_2 = Publication(
    key="ESM-2",
    cited_for="the embeddings of proteins",
    authors=_authors(
        "Lin, Zeming; Akin, Halil; Rao, Roshan; Hie, Brian; Zhu, Zhongkai; Lu, Wenting; Smetanin, Nikita; "
        "Verkuil, Robert; Kabeli, Ori; Shmueli, Yaniv; dos Santos Costa, Allan; Fazel-Zarandi, Maryam; "
        "Sercu, Tom; Candido, Salvatore; Rives, Alexander"
    ),
    title="Evolutionary-scale prediction of atomic-level protein structure with a language model",
    journal="Science",
    year=2023,
    volume="379",
    issue="6637",
    pages="1123-1130",
    doi="10.1126/science.ade2574",
)
DNABERT_S = Publication(
    key="DNABERT-S",
    cited_for="the embeddings of DNA",
    authors=_authors(
        "Zhou, Zhihan; Wu, Weimin; Ho, Harrison; Wang, Jiayi; Shi, Lizhen; Davuluri, Ramana V; Wang, Zhong; "
        "Liu, Han"
    ),
    title="DNABERT-S: pioneering species differentiation with species-aware DNA embeddings",
    journal="Bioinformatics",
    year=2025,
    volume="41",
    issue="Supplement_1",
    pages="i255-i264",
    doi="10.1093/bioinformatics/btaf188",
)
PUBLICATIONS = (VIRNUCPRO, ESM_2, DNABERT_S)
