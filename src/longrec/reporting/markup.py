"""Small HTML elements that several sections of a page use. Arguments are HTML-escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape


def format_facts(facts: Mapping[str, object]) -> str:
    """Return name and value pairs as small tiles."""
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{listed}</dl>' if listed else ""


def format_card(head: str, chart: str, note: str) -> str:
    """Return a chart (SVG) below its heading, with a note. Empty without a chart."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(head)}</h3>{chart}{caption}</figure>" if chart else ""


def format_code(text: str) -> str:
    """Return escaped text with `text between backticks` as code. A bare command becomes code as a whole."""
    if "`" not in text and text.startswith("longrec "):
        text = f"`{text}`"
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def join_names(names: Sequence[str]) -> str:
    """Join names as in ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
