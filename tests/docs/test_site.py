"""The site has every page once, and each page of the guide says what it is for. Sphinx is not needed here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from doc_pages import GUIDE, ROOT

DOCS = ROOT / "docs"
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.M | re.S)


def read_navigation() -> list[str]:
    """Entries of the navigation of the front page."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    lines = [line for block in TOCTREE.findall(text) for line in block.splitlines()]
    entries = [line for line in lines if line and not line.startswith(":")]
    return [match[1] if (match := re.search(r"<(.+)>$", entry)) else entry for entry in entries]


def list_pages() -> set[str]:
    """Pages of the site without its front page, and without the lists of models and of decisions."""
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    return {page for page in pages if not page.startswith(("models/", "decisions/"))} - {"index"}


def test_every_page_is_in_the_navigation_once() -> None:
    entries = read_navigation()
    assert len(set(entries)) == len(entries)
    assert list_pages() - set(entries) == set(), "add these pages to docs/index.md"
    assert set(entries) - list_pages() == set(), "docs/index.md names pages that do not exist"


@pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_the_guide_begins_with_what_it_is_for(page: Path) -> None:
    title, first, *_ = [one for one in page.read_text(encoding="utf-8").split("\n\n") if one.strip()]
    assert title.startswith("# ")
    assert page.stem == "glossary" or first.startswith("After this page, "), (
        "say what the reader can do after this page"
    )


def test_the_files_that_the_site_includes_exist() -> None:
    text = (DOCS / "conf.py").read_text(encoding="utf-8")
    pairs = re.findall(r'^    "([\w/.-]+\.md)": "([\w/.-]+\.md)",$', text, re.M)
    assert len(pairs) >= 4
    for file, page in pairs:
        assert (ROOT / file).is_file()
        assert (DOCS / page).is_file()


def test_the_site_is_built_into_an_ignored_folder_with_warnings_as_errors() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    match = re.search(r"sphinx\b.* -W .*docs (\w+)/site$", makefile, re.M)
    assert match is not None
    assert f"{match[1]}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_tests_need_no_sphinx() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(word.startswith("sphinx>") for word in extras["docs"])
    assert not any("docs" in word for word in extras["dev"])
