"""Settings of the documentation site. ``make site`` builds it into ``build/site``, with warnings as errors.

The pages are plain Markdown that GitHub shows too. Sphinx adds the navigation, the search and the links between them.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from longrec import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "LongRec"
author = "the LongRec authors"
copyright = "the LongRec authors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the anchors of GitHub, on headings of levels 1 to 4
nitpicky = True

html_theme = "furo"
pygments_style, pygments_dark_style = "tango", "monokai"
html_title = f"LongRec {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7cb8f2", "color-brand-content": "#7cb8f2"},
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

# Markdown files outside docs/ that are pages of the site, and the page that includes each.
INCLUDED = {
    "bench/README.md": "project/benchmarks.md",
    "CHANGELOG.md": "project/changes.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "examples/instance_tokens/README.md": "project/instance-tokens-study.md",
    "examples/movielens/README.md": "project/movielens.md",
    "examples/notebook/README.md": "project/notebook.md",
    "examples/semantic_ids/README.md": "project/semantic-ids-example.md",
}
MODEL_PAGES = "\n\n```{toctree}\n:hidden:\n:glob:\n\nmodels/*\n```\n"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def read_page(app: Any, name: str, source: list[str]) -> None:
    """Include the files of INCLUDED, point links at their pages, and list the model pages below ``models.md``."""
    page = Path(app.srcdir, f"{name}.md")
    included = next((file for file, target in INCLUDED.items() if target == f"{name}.md"), None)
    if included is not None:
        page = ROOT / included
        source[0] = page.read_text(encoding="utf-8")
    source[0] = LINK.sub(lambda match: f"]({_find_page(page, match[1], app, name)}{match[2] or ''})", source[0])
    if name == "models":
        source[0] += MODEL_PAGES


def _find_page(page: Path, target: str, app: Any, name: str) -> str:
    """Return a link of a file as a link of the page that shows the file."""
    path = (page.parent / target).resolve()
    if not path.exists():  # code with the form of a link
        return target
    if path.is_relative_to(ROOT) and (file := path.relative_to(ROOT).as_posix()) in INCLUDED:
        path = Path(app.srcdir, INCLUDED[file])
    elif path.is_dir():
        path = path.with_suffix(".md")
    return Path(os.path.relpath(path, Path(app.srcdir, name).parent)).as_posix()


def setup(app: Any) -> dict[str, bool]:
    """Connect the reader of pages."""
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
