"""Run all steps of the example, from the tables to recommendations of items that training has not seen.

    python run_all.py                                               # the shop
    python run_all.py --data FOLDER method.size=256                 # Amazon Beauty

Options go to prepare.py. Settings that begin with ``method`` go to the tokenizer, and others to the training.
"""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from longrec.cli import main as longrec

STEPS = (
    "python prepare.py",
    "longrec tokenize tokens.yaml --into tokens",
    "longrec diagnose tokens --vectors tokens.yaml --log log.parquet",
    "longrec train unirec.yaml",
    "longrec evaluate runs/unirec",
    "longrec export runs/unirec unirec.bundle",
    "python recommend.py",
    "longrec tokenize tokens.yaml vectors.items=[items.parquet,arrivals.parquet] --append tokens",
    "python add_items.py",
    "longrec catalog unirec.bundle changes.parquet",
    "python recommend.py",
)


def main(arguments: Sequence[str]) -> int:
    """Run the steps until one fails, and return its exit code."""
    settings = [one for one in arguments if "=" in one and not one.startswith("-")]
    options = [one for one in arguments if one not in settings]
    of_method = [one for one in settings if one.startswith("method")]
    further = {
        "python prepare.py": options,
        "longrec tokenize": of_method,
        "longrec train": [one for one in settings if one not in of_method],
    }
    for step in STEPS:
        own = next((extra for start, extra in further.items() if step.startswith(start)), [])
        command, *rest = [*shlex.split(step), *own]
        print(f"\n$ {shlex.join([command, *rest])}", flush=True)
        if code := longrec(rest) if command == "longrec" else run_script(rest):
            return code
    return 0


def run_script(arguments: Sequence[str]) -> int:
    """Run a script of this folder in this process."""
    with patch.object(sys, "argv", list(arguments)):
        runpy.run_path(str(Path(__file__).with_name(arguments[0])), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
