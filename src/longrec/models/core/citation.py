"""The paper of a model as BibTeX, read from the model's docstring without importing torch.

    DIN: Deep Interest Network for Click-Through Rate Prediction.                   NAME: TITLE (a remark).

    Zhou, Zhu, Song, KDD 2018. https://arxiv.org/abs/1706.06978                     AUTHORS, VENUE YEAR. LINK

An author is a surname or a whole name. ``et al.`` or ``and others`` ends a list that goes on. A lowercase remark in
parentheses at the end of the title names the component of the paper that the model is. It does not belong to the title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from string import ascii_lowercase

from longrec.errors import ConfigError
from longrec.models.core.catalog import Card, describe

FORM = "AUTHORS, VENUE YEAR. LINK, as in: Zhou, Zhu, Song, KDD 2018. https://arxiv.org/abs/1706.06978"
_PERIODICALS = re.compile(
    r"\b(?:Trans|Transactions|Journal|T[KO]IS|TKDE|TKDD|TIST|JMLR|PVLDB|Computer|Letters)\b|^Machine Learning$"
)
_SPECIAL = re.compile(r"[&%$#_{}]")


@dataclass(frozen=True)
class Citation:
    """One entry of a bibliography.

    Attributes:
        key: citation key.
        title: title of the paper.
        authors: as the docstring names them.
        others: True if there are more.
        venue: conference, journal, or arXiv.
        year: year of publication.
        link: URL of the paper.
        release: version of a piece of software. Empty for a paper.
    """

    key: str
    title: str
    authors: tuple[str, ...]
    others: bool
    venue: str
    year: int | None
    link: str
    release: str = ""

    @property
    def kind(self) -> str:
        """BibTeX type of the entry."""
        if self.release or self.venue == "arXiv":
            return "misc"
        return "article" if _PERIODICALS.search(self.venue) else "inproceedings"

    def fields(self) -> dict[str, str]:
        """Return the fields of the entry, in their order, as BibTeX writes them."""
        names = [*map(_name, self.authors), *(["others"] if self.others else [])]
        content = {"title": f"{{{_escape(self.title)}}}", "author": " and ".join(names)}
        if self.kind != "misc":
            content["journal" if self.kind == "article" else "booktitle"] = _escape(self.venue)
        if self.year is not None:
            content["year"] = str(self.year)
        if self.release:
            content["howpublished"] = f"Software, version {self.release}"
        if number := re.search(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", self.link):
            content |= {"eprint": number[1], "archivePrefix": "arXiv"}
        if doi := re.search(r"doi\.org/(10\.\d+/\S+)", self.link):
            content["doi"] = doi[1]
        return content | ({"url": self.link} if self.link else {})

    def bibtex(self) -> str:
        """Return the entry as text."""
        fields = self.fields()
        width = max(map(len, fields))
        lines = [f"  {name:<{width}} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


@dataclass(frozen=True)
class Entry:
    """An entry of a bibliography: its key, the models of the paper, and the text."""

    key: str
    models: tuple[str, ...]
    bibtex: str


def citation(card: Card) -> Citation:
    """Return the citation in a model's docstring.

    Raises:
        ConfigError: if the docstring does not name authors, venue and year in the fixed form.
    """
    match = re.match(r"(?P<before>.*?)\b(?P<year>(?:19|20)\d\d)\b", card.source)
    if match is None:
        raise _fault(card, f"names no year: {card.source!r}")
    *before, venue = match["before"].split(", ")
    if not re.search(r"[A-Za-z]", venue):
        raise _fault(card, f"names no venue before the year {match['year']}: {card.source!r}")
    authors, others = _authors(before)
    if not authors:
        raise _fault(card, f"names no author before {venue.strip()!r}: {card.source!r}")
    strange = [name for name in authors if not re.fullmatch(r"[^\W\d_][^\d_()\[\]:;]*", name)]
    if strange:
        raise _fault(card, f"{', '.join(map(repr, strange))} is no name of an author")
    title = re.sub(r"\s*\([a-z][^()]*\)$", "", card.title)
    year = int(match["year"])
    short, first_author = card.text.partition(":")[0].split(), authors[0].split()
    surname = first_author[0] if _is_group(authors[0]) else first_author[-1]
    key = f"{_to_ascii(surname)}{year}{_to_ascii(short[0]) if short else ''}"
    return Citation(key, title, authors, others, venue.strip(), year, card.link)


def software() -> Citation:
    """Return the citation of the installed version of LongRec."""
    title = "LongRec: Recommendation from long user histories"
    return Citation("longrec", title, ("The LongRec authors",), False, "", None, "", version("longrec"))


def entries(models: Iterable[str]) -> list[Entry]:
    """Return the papers of the given models without duplicates, and LongRec last.

    Raises:
        ConfigError: if there is no such model, or its docstring does not name its paper.
    """
    by_paper: dict[Citation, list[str]] = {}
    for name in dict.fromkeys(models):
        by_paper.setdefault(citation(describe(name)), []).append(name)
    by_paper[software()] = ["longrec"]
    keys: set[str] = set()
    bibliography = []
    for one, names in by_paper.items():
        # A letter distinguishes two papers of one author, year and first word.
        key = next(key for key in (one.key, *(one.key + letter for letter in ascii_lowercase)) if key not in keys)
        keys.add(key)
        bibliography.append(Entry(key, tuple(names), replace(one, key=key).bibtex()))
    return bibliography


def _authors(items: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Parse names, and True if the list goes on: ``Ma, Yi and Chi``, ``Cheng et al.``, ``Ma, Zhao and others``."""
    listed = re.sub(r",?\s+(?:et al\.?|and others)$", ", others", ", ".join(items).strip())
    names = [name.strip() for name in re.split(r",\s*(?:and\s+)?|\s+and\s+", listed) if name.strip()]
    others = "others" in names
    return tuple(name for name in names if name != "others"), others


def _fault(card: Card, message: str) -> ConfigError:
    return ConfigError(f"model {card.name}", [f"the second paragraph of its docstring {message}; expected {FORM}"])


def _to_ascii(word: str) -> str:
    """Return the lowercase Latin letters and digits of a word."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", word).lower())


def _is_group(author: str) -> bool:
    """Return True for the name of a group: its last word is lowercase, as in ``Taobao search team``."""
    names = author.split()
    return len(names) > 1 and names[-1][0].islower()


def _name(author: str) -> str:
    """Return a name for BibTeX. Braces protect that of a group."""
    return f"{{{_escape(author)}}}" if _is_group(author) else _escape(author)


def _escape(text: str) -> str:
    """Escape characters that are special in BibTeX."""
    return _SPECIAL.sub(lambda sign: f"\\{sign[0]}", text)
