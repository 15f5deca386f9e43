"""Write the pages of docs/reference from the code. ``--check`` only reports whether they are up to date.

    python docs/make_reference.py [--check]

Settings come from their classes, commands from the parser, errors and Python names from their modules.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import reference_commands
import reference_errors
import reference_python
from reference_settings import CONFIG, PIPELINE, SCHEMA, TOKENIZE, TOKENS, format_page

FOLDER = Path(__file__).resolve().parent / "reference"
PIPELINE_INTRO = """All keys of a pipeline, the YAML file that joins bundles to one request. `NAME` stands for the name
of a source. Every `count` means "or `k`, if that is more"."""
SCHEMA_INTRO = """All keys of a schema, the YAML file that describes the columns of a log. A word in capitals (`NAME`,
`COLUMN`) stands for a name of yours. The guide explains the keys with examples: [Describe your
log](../guide/schema.md)."""
CONFIG_INTRO = """All keys of a training config (a *job*). It has five sections:

- `name`: name of the run. Without it, the run is named by its model and a free number, such as `din-1`.
- `data`: the input, its [schema](schema.md) and its split. `data.schema` is the path of a schema, or the schema itself.
- `model`: `name` selects the [model](../models.md). All other keys are settings of that model, listed on its page.
- `fit`: training.
- `evaluate`: metrics.

A path is relative to the file that contains it. The output (`runs`, `prepared`) is written below the working directory.
A word in capitals (`COLUMN`) stands for a name of yours."""
TOKENS_INTRO = """Settings of `longrec compress` and `longrec encode`, written as `key=value` after the command."""

TOKENIZE_INTRO = """All keys of the config of `longrec tokenize`. `method` is the name of a method, or a mapping of
`name` and the settings that are listed here under that name: `method: {name: rq_kmeans, size: 512}`, or
`method.size=512` after the command. Paths are relative to the file."""


def build_pages() -> dict[str, str]:
    """Return the text of every reference page by its file name."""
    return {
        "schema.md": format_page("Schema keys", SCHEMA_INTRO, SCHEMA),
        "pipeline.md": format_page("Pipeline keys", PIPELINE_INTRO, PIPELINE),
        "config.md": format_page("Config keys", CONFIG_INTRO, CONFIG),
        "tokens.md": format_page("Keys of compress and encode", TOKENS_INTRO, TOKENS),
        "tokenize.md": format_page("Keys of tokenize", TOKENIZE_INTRO, TOKENIZE),
        "commands.md": reference_commands.format_page(),
        "errors.md": reference_errors.format_page(),
        "python.md": reference_python.format_page(),
    }


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a page is not up to date")
    checks = parser.parse_args().check
    stale = []
    for name, text in build_pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(f"docs/reference/{name}")
            if not checks:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if checks and stale:
        sys.exit(f"not up to date: {', '.join(stale)}: run make docs")


if __name__ == "__main__":
    main()
