"""Write docs/models.md, and a page with a figure per model; ``--check`` only reports whether they are up to date.

    python docs/make_models.py [--check] [NAME ...]

Texts come from the source of the models. Figures and counts need a run of every model (half a minute for all). To keep
a check fast, docs/models/drawn.json holds fingerprints of the code they were made from. A model is not run again if its
code and the code it imports are unchanged.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from model_page import COUNTED, DRAWN, SETS, page, plain, read_section

from longrec.models.core.catalog import Card, describe, names

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
LIST, FOLDER, RESULTS = HERE / "models.md", HERE / "models", HERE.parent / "bench" / "results" / "models.json"
SUMS = FOLDER / "drawn.json"
PACKAGES = ("longrec.models.", "longrec.nn.", "longrec.features.")
HEAD = """# Models

<!-- Written by `make docs`; do not edit. -->

The page of a model shows what it computes, its settings, its computation graph, its cost and its results. `longrec help
NAME` prints the settings too. [Choose a model](guide/choosing-a-model.md) lists models by need.

"""
TAIL = """
## How the pages are made

No figure is drawn by hand. A small build of the model, with its default settings, scores a synthetic request. Every
operation is recorded, so lines, sizes and rates show what was computed. Boxes are the modules of the model, named by
their attributes. Operations that only concatenate columns are left out.

Operations are counted in the same run. A matrix product of n by k and k by m counts 2nkm, elementwise operations and
sums count one per entry, and look-ups and copies nothing. *A row* has a history of its own, as in training, and is
counted in a batch of at least 2,560 positions. *A candidate* is one of 100 that are scored for one user, where all
terms of the history alone are computed once for all candidates. All embeddings are 16 wide.
"""


RESULTS_HEAD = """
## Results

All models have the same training budget, and none is tuned. A model that reads histories also reads the users' feedback
on earlier events. Histories have 20 events (KuaiRand 30, Beauty 100), and 100 for speed. The `rankers` tables of
[bench](../bench/README.md) show which differences are significant and the spread over seeds, and the page of each model
shows its interval. All results were measured with version 0.3. `lr`, `deepfm`, `din`, `dien`, `bst` and `mmoe` were
measured again with 0.4, which moved their AUC by at most a few thousandths (`rerun_0.4.0` among the results of bench).
The others were not measured again.

"""


class BrokenModelError(Exception):
    """A model without a page, because it cannot be read, built, or run."""


def format_list(cards: Iterable[Card], results: Mapping[str, Any]) -> str:
    """Return the page that lists all models, with their results side by side."""
    lines = ["| name | kind | reads histories | paper |", "| --- | --- | --- | --- |"]
    for card in cards:
        title = plain(card.title)
        paper = f"[{title}]({card.link})" if card.link else title
        history = "yes" if card.reads_history else "no"
        lines.append(f"| [`{card.name}`](models/{card.name}.md) | {card.kind} | {history} | {paper}. {card.source} |")
    return HEAD + "\n".join(lines) + "\n" + format_all_results(results) + TAIL


def format_all_results(results: Mapping[str, Any]) -> str:
    """Return the table of results and costs, best first on the first log; empty without results."""
    logs, speed = [log for log in SETS if log in results], results.get("speed", {})
    models = sorted(
        {name for scores in results.values() for name in scores},
        key=lambda name: [-results[log].get(name, {}).get("auc", 0.0) for log in logs],
    )
    if not models:
        return ""
    head = ["model", *(f"test AUC, {SETS[log]}" for log in logs)]
    head += ["rows per CPU-second in training", "ms for 100 candidates"] if speed else []
    lines = [head, ["---"] * len(head)]
    for name in models:
        cells = [f"[`{name}`](models/{name}.md)"]
        cells += [f"{results[log][name]['auc']:.4f}" if name in results[log] else "" for log in logs]
        if speed:
            own = speed.get(name)
            cells += [f"{own['train_rows_per_s']:,.0f}", f"{own['inference_ms_100']:.2f}"] if own else ["", ""]
        lines.append(cells)
    return RESULTS_HEAD + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def build_page(name: str, results: Mapping[str, Any], sums: Mapping[str, str]) -> tuple[str, str]:
    """Return page and figure of a model. Sections that need a run are reused if the code is unchanged."""
    text, figure = FOLDER / f"{name}.md", FOLDER / f"{name}.svg"
    drawn = counted = None
    if sums.get(name) == fingerprint(name) and text.exists() and figure.exists():
        before = text.read_text(encoding="utf-8")
        drawn, counted = read_section(before, DRAWN), read_section(before, COUNTED)
    if drawn is not None and counted is not None:
        return page(name, drawn, counted, results), figure.read_text(encoding="utf-8")
    from model_run import run  # imports torch

    picture, drawn, counted = run(name)
    return page(name, drawn, counted, results), picture


def fingerprint(name: str) -> str:
    """Return a digest of the code of a figure and its counts: the model, its imports, and these scripts."""
    digest = hashlib.sha256()
    for path in sorted({*_closure(f"longrec.models.{name}"), *HERE.glob("model_*.py")} - {HERE / "model_page.py"}):
        digest.update(f"{path.name}\n{_code(path)}\n".encode())
    return digest.hexdigest()[:16]


def _closure(module: str) -> set[Path]:
    """Return the files of a module and of all modules of the package it imports, directly or not."""
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        path = _path(one)
        if path is not None and one not in files:
            files[one] = path
            waiting += _imports(path)
    return set(files.values())


def _path(module: str) -> Path | None:
    base = SOURCE / Path(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Return the imported modules of the packages a model may import. Other packages do not change what a model
    computes.
    """
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            ("longrec.models.", "longrec.nn.", "longrec.features.")
        ):
            modules += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and node.module in ("longrec.models", "longrec.nn", "longrec.features"):
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(modules)


@cache
def _code(path: Path) -> str:
    """Return a file without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def pages(
    models: Iterable[str], results: Mapping[str, Any], sums: Mapping[str, str]
) -> Iterator[tuple[Card, str, str, str]]:
    """Yield card, page, figure and fingerprint of every model. A broken one is reported and skipped.

    Raises:
        BrokenModelError: at the end, if some were skipped.
    """
    broken = []
    for name in models:
        try:
            yield describe(name), *build_page(name, results, sums), fingerprint(name)
        except Exception as error:  # noqa: BLE001 - one unfinished model must not stop the pages of the others
            frame = traceback.extract_tb(error.__traceback__)[-1]
            location = f"{Path(frame.filename).name}:{frame.lineno}"
            broken.append(f"{name}: {type(error).__name__} at {location}: {' '.join(str(error).split())}")
    if broken:
        raise BrokenModelError("no page for\n  " + "\n  ".join(broken))


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when something is not up to date")
    parser.add_argument("names", nargs="*", help="models whose pages to write; all when none is given")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    sums: dict[str, str] = json.loads(SUMS.read_text(encoding="utf-8")) if SUMS.exists() else {}
    wanted: dict[Path, str] = {}
    cards, digests, broken = list[Card](), dict[str, str](), None
    try:
        for card, text, figure, digest in pages(args.names or names(), results, sums):
            wanted |= {FOLDER / f"{card.name}.md": text, FOLDER / f"{card.name}.svg": figure}
            cards.append(card)
            digests[card.name] = digest
    except BrokenModelError as error:
        broken = error
    if not args.names:
        wanted[LIST] = format_list(cards, results)
    obsolete = [] if args.names else [path for path in FOLDER.glob("*.*") if path.stem not in names() and path != SUMS]
    if args.check:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        paths = [str(path.relative_to(HERE.parent)) for path in [*stale, *obsolete]]
        if paths:
            sys.exit(f"not up to date: {', '.join(paths)}: run make docs")
    else:
        FOLDER.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        for path in obsolete:
            path.unlink()
        kept = {name: digest for name, digest in {**sums, **digests}.items() if name in names()}
        SUMS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    if broken is not None:
        sys.exit(str(broken))


if __name__ == "__main__":
    main()
