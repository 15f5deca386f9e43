"""Page of one model: its docstring in Markdown, with its settings, its results and its BibTeX.

Sections that need a run of the model (figure, counts) are passed in. The rest is read from the source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.config import to_yaml
from longrec.models.core.catalog import Card, describe, settings, variants
from longrec.models.core.citation import citation

ROOT = Path(__file__).resolve().parent.parent
COUNTED, DRAWN = "<!-- counted -->", "<!-- drawn -->"
"""Marks of a page. The text below them, up to the next heading, comes from a run of the model."""
SETS = {
    "movielens": "MovieLens-1M",
    "c12": "MovieLens-1M by protocol C12",
    "kuairand": "KuaiRand-Pure",
    "beauty": "Amazon Beauty in DIEN's form",
}
"""Names of the logs of the results. Any other log is shown by its key."""


def page(name: str, drawn: str, counted: str, results: Mapping[str, Any]) -> str:
    """Return the whole page.

    Args:
        drawn: the text below the figure.
        counted: the table of operations.
        results: of all models; see ``format_results``.
    """
    card = describe(name)
    reads = "reads histories" if card.reads_history else "reads no histories"
    title = f"[{plain(card.title)}]({card.link})" if card.link else plain(card.title)
    lines = [
        f"# {plain(_short(card))}",
        "",
        "<!-- Written by `make docs`; do not edit. -->",
        "",
        f"{title}. {plain(card.source)}.",
        "",
        f"`{name}`: a {card.kind}, {reads}. In a job: `model: {{name: {name}}}`. In the source: {_links(name)}. "
        "All models: [the list](../models.md).",
        "",
        "## What it computes",
        "",
        *body(card.text),
        "",
        "## Computation graph",
        "",
        f"![Computation graph of {name}]({name}.svg)",
        "",
        DRAWN,
        drawn,
        "",
        "## Settings",
        "",
        *_settings(name),
        "",
        "## Cost",
        "",
        "Operations of one row, and of one candidate of many ([counted](../models.md#how-the-pages-are-made)):",
        "",
        COUNTED,
        counted,
        "",
        "## Results",
        "",
        *format_results(name, results),
        "",
        "## How to cite it",
        "",
        "```bibtex",
        citation(card).bibtex(),
        "```",
    ]
    return "\n".join([*lines, ""])


def read_section(text: str, mark: str) -> str | None:
    """Return the text below a mark of a written page, or None without that mark."""
    match = re.search(rf"^{re.escape(mark)}\n(.*?)\n\n## ", text, re.M | re.S)
    return match[1] if match else None


def body(text: str) -> list[str]:
    """Return a docstring from its third paragraph on: formulas as code, departures as a list."""
    lines: list[str] = []
    for paragraph in re.split(r"\n{2,}", text.strip())[2:]:
        block = paragraph.split("\n")
        if block[0].startswith("Departures from the paper"):
            lines += ["### Departures from the paper", "", *_list(block[1:]), ""]
            continue
        for run, code in _runs(block):
            lines += ["```text", *_dedent(run), "```", ""] if code else [plain(" ".join(run)), ""]
    return lines[:-1]


def plain(text: str) -> str:
    """Return text as Markdown that shows it unchanged. Text in backticks stays code."""
    pieces = re.split(r"(?:``(?=[^`])|(?<!`)`(?=[^`]))(.+?)`{1,2}", " ".join(text.split()))
    for at in range(0, len(pieces), 2):
        escaped = re.sub(r"[\\*\[\]|`~]", r"\\\g<0>", pieces[at])
        escaped = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)
        pieces[at] = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(r"\](", r"\]\(")
    return "".join(f"`{piece}`" if at % 2 else piece for at, piece in enumerate(pieces))


def format_results(name: str, results: Mapping[str, Any]) -> list[str]:
    """Return the results of a model, by data set: ``{"movielens": {"din": {"auc": ...}}, "speed": {...}}``."""
    rows = []
    for log, models in results.items():
        scores = models.get(name) if log != "speed" else None
        if scores is not None:
            low, high = (f"{scores[key]:.4f}" if scores.get(key) is not None else "?" for key in ("low", "high"))
            rows.append(f"| {SETS.get(log, log)} | {scores['auc']:.4f} | {low} to {high} | {scores.get('seeds', 1)} |")
    lines = ["| log | AUC on test | interval | seeds |", "| --- | --- | --- | --- |", *rows] if rows else []
    speed = results.get("speed", {}).get(name)
    if speed is not None:
        columns = [
            ("parameters", "parameters", "{:,.0f}"),
            ("train_rows_per_s", "rows per second in training", "{:,.0f}"),
            ("inference_ms_100", "milliseconds for 100 candidates", "{:,.2f}"),
        ]
        kept = [(heading, form.format(speed[key])) for key, heading, form in columns if speed.get(key) is not None]
        lines += [""] if lines else []
        lines += ["| | |", "| --- | --- |", *(f"| {heading} | {value} |" for heading, value in kept)]
    return [*lines, "", "How it was measured: [bench](../../bench/README.md)."] if lines else ["Not measured yet."]


def _short(card: Card) -> str:
    return " ".join(card.text.partition(":")[0].split()) or card.name


def _links(name: str) -> str:
    own, test = ROOT / "src/longrec/models" / f"{name}.py", ROOT / "tests/models" / f"test_{name}.py"
    links = [f"[{path.name}](../../{path.relative_to(ROOT).as_posix()})" for path in (own, test) if path.exists()]
    return " and ".join(links)


def _runs(block: Sequence[str]) -> list[tuple[list[str], bool]]:
    """Split a paragraph into runs of lines: text, and formulas, which are indented."""
    runs: list[tuple[list[str], bool]] = []
    for line in block:
        code = line.startswith("    ")
        if not runs or runs[-1][1] != code:
            runs.append(([], code))
        runs[-1][0].append(line)
    return runs


def _dedent(lines: Sequence[str]) -> list[str]:
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return [line[margin:].rstrip() for line in lines]


def _list(lines: Sequence[str]) -> list[str]:
    """Return indented points, each of one line or several, as a list."""
    points: list[str] = []
    for line in lines:
        if line.strip().startswith("- "):
            points.append(line.strip()[2:])
        elif points:
            points[-1] += f" {line.strip()}"
    return [f"- {plain(point)}" for point in points]


def _settings(name: str) -> list[str]:
    own = settings(name)
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"] if own else ["It has none."]
    for one in own:
        lines.append(f"| `{one.key}` | {_code(one.type)} | {_code(one.default)} | {plain(one.meaning)} |")
    others = variants(name)
    if others:
        lines += ["", "The conformance suite runs it with these too:", ""]
        lines += [f"- `{_variant(name, other)}`" for other in others]
    return lines


def _variant(name: str, source: str) -> str:
    """Return settings of the suite as a job writes them, or their source if it computes them."""
    try:
        return _inline({"name": name, **ast.literal_eval(_Whole().visit(ast.parse(source, mode="eval")))})
    except ValueError:
        return source


class _Whole(ast.NodeTransformer):
    """Merge of ``{**{"a": 1}, **{"b": 2}}`` into one mapping."""

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        self.generic_visit(node)
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        for key, value in zip(node.keys, node.values):
            joined = key is None and isinstance(value, ast.Dict)
            pairs += zip(value.keys, value.values) if joined else [(key, value)]  # type: ignore[attr-defined]
        return ast.Dict([key for key, _ in pairs], [value for _, value in pairs])


def _inline(value: Any) -> str:
    """Return settings as YAML on one line.

    >>> _inline({"name": "din", "mlp": [8, 4], "softmax": True, "base": {"name": "fm"}})
    '{name: din, mlp: [8, 4], softmax: true, base: {name: fm}}'
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_inline(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return to_yaml(value, inline=True).removesuffix("...\n").strip()


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""
