"""Pages of the documentation as tests read them: fenced blocks, files, links and headings.

A fenced block says by its language and first line what is checked:

- ``yaml`` with a first line ``# NAME.yaml`` is a file of its page; ``NAME.schema.yaml`` is a schema, any other name a
  job, which finds its schema among the files of its page. Without a name it is a part of a schema.
- ``python`` with a first line ``# NAME.py`` is a file of its page, and so is ``text`` with ``# NAME.config``.
- ``console run`` and ``python run`` are run, in order, in one folder per page, which holds the files of the page.
- ``text output`` is what the block before it prints, up to small differences of numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
GUIDE = ROOT / "docs" / "guide"


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    arguments: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The name in a first line such as ``# din.yaml``."""
        match = re.match(r"# ([\w./-]+\.(?:yaml|py|config))\n", self.text)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    collected: list[Block] = []
    open_at, info, lines = 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif open_at:
            language, *arguments = info.split() or [""]
            collected.append(Block(page, open_at, language, tuple(arguments), "\n".join(lines) + "\n"))
            open_at = 0
        else:
            open_at, info, lines = number, line[3:].strip(), []
    assert not open_at, f"{page}:{open_at}: a block is never closed"
    return collected


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str, *arguments: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and set(arguments) <= set(block.arguments)]


def write_files(page: Path, folder: Path) -> dict[str, Path]:
    """The named blocks of a page as files."""
    files = {}
    for block in blocks(page):
        if block.file is not None:
            assert block.file not in files, f"{block}: {block.file} stands twice on this page"
            files[block.file] = folder / block.file
            files[block.file].parent.mkdir(parents=True, exist_ok=True)
            files[block.file].write_text(block.text, encoding="utf-8")
    return files


def without_code(text: str) -> str:
    """Text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link. A repeated heading gets a number."""
    counts: dict[str, int] = {}
    names = set()
    for title in re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.M):
        name = slug(title)
        number = counts[name] = counts.get(name, -1) + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def links(page: Path) -> list[str]:
    """Relative links and images of a page."""
    text = re.sub(r"`[^`\n]+`", "", without_code(page.read_text(encoding="utf-8")))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def link_faults(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    faults = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists():
            faults.append(f"{page.name}: {target}: no such file")
        elif anchor and anchor not in anchors(file):
            faults.append(f"{page.name}: {target}: no such heading")
    return faults


def list_commands_used(text: str) -> set[str]:
    """``longrec COMMAND`` in running text and in console blocks."""
    return set(re.findall(r"(?:^\$ |`|&& )longrec ([a-z]+)", text, re.M))


def plant(folder: Path, text: str) -> Path:
    """Write a page with a fault for a test to report."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page
