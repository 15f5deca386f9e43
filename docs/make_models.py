"""Write docs/models.md from the models' own docstrings; ``--check`` only says whether it is up to date.

    python docs/make_models.py [--check]

Imports no model and no torch: the catalogue reads module docstrings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from longrec.models.catalogue import describe, names

PAGE = Path(__file__).resolve().parent / "models.md"
HEAD = """# Models

Written by `make docs` from the models' docstrings; do not edit. `longrec help NAME` shows the settings of one.

"""


def page() -> str:
    """The whole page."""
    lines = ["| name | kind | reads histories | paper |", "| --- | --- | --- | --- |"]
    for card in map(describe, names()):
        paper = f"[{card.title}]({card.link})" if card.link else card.title
        history = "yes" if card.reads_history else "no"
        lines.append(f"| `{card.name}` | {card.kind} | {history} | {paper}. {card.source} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Write or check."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--check", action="store_true", help="exit with 1 when the page is not up to date")
    text = page()
    if not ask.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/models.md is not up to date: run make docs")


if __name__ == "__main__":
    main()
