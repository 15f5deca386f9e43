"""Small pieces of HTML that several parts of a page are made of. What they are given is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape


def fact_list(facts: Mapping[str, object]) -> str:
    """Name and value pairs as small tiles."""
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{listed}</dl>' if listed else ""


def card(head: str, chart: str, note: str) -> str:
    """A chart (ready SVG) under its head, with a note; nothing when there is no chart."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(head)}</h3>{chart}{caption}</figure>" if chart else ""


def code(text: str) -> str:
    """Escaped text with `words between backticks` as code; a bare command is code as a whole."""
    if "`" not in text and text.startswith("longrec "):
        text = f"`{text}`"
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def join_names(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
