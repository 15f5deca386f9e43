"""Plain text tables for the terminal, and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longrec.errors import LongRecError
from longrec.metrics import Interval
from longrec.terminal_text import measure_width, table, warning_lines

__all__ = [
    "comparison_table", "describe_metric", "format_counts", "format_metric_name", "format_signed", "format_verdict",
    "left_out_lines", "list_metric_keys", "metrics_table", "results_table", "table", "to_plain", "warning_lines",
    "write_atomically", "write_json",
]  # fmt: skip

# key -> name and description, in the order of the metrics in reports.
METRIC_LABELS: dict[str, tuple[str, str]] = {
    "auc": ("AUC", "order over all rows; higher is better"),
    "gauc": ("GAUC", "order within each user; higher is better"),
    "log_loss": ("Log loss", "cost of wrong probabilities; lower is better"),
    "normalized_entropy": ("Normalized entropy", "log loss over that of the base rate; below 1, lower is better"),
    "pcoc": ("PCOC", "predicted over observed positives; best at 1"),
    "ece": ("ECE", "mean gap between prediction and outcome; lower is better"),
}
RANK_LABELS: dict[str, tuple[str, str]] = {
    "ndcg": ("NDCG", "gain of the target's rank; higher is better"),
    "hr": ("HR", "share of targets in the list; higher is better"),
    "mrr": ("MRR", "mean of 1 / rank of the target; higher is better"),
    "recall": ("Recall", "share of targets in a longer list; higher is better"),
    "token_hr": ("Token HR", "share of targets whose token is among the best, given those before; higher is better"),
}
"""Metrics of ranks, whose keys end in their cut, such as ``hr@10``."""
LIST_LABELS: dict[str, tuple[str, str]] = {
    "precision": ("Precision", "share of the list that is relevant; higher is better"),
    "map": ("MAP", "precision at the relevant items; higher is better"),
    "coverage": ("Coverage", "share of the catalog that is listed for anybody; higher is better"),
    "gini": ("Gini", "concentration of the listed items: 0 all alike, 1 one item"),
    "entropy": ("Entropy", "evenness of the listed items in bits"),
    "novelty": ("Novelty", "mean -log2 of the share of users who had a listed item"),
    "popularity_bias": ("Popularity bias", "popularity percentile of the list minus that of the history"),
    "serendipity": ("Serendipity", "listed targets that popularity would list further down; higher is better"),
    "diversity": ("Diversity", "mean cosine distance of two listed items"),
    "cpu_ms": ("CPU ms", "CPU time per request; lower is better"),
    "candidates": ("Items", "length of the list"),
}
"""Metrics of lists, whose keys end in their cut."""
SAMPLED = "sampled_"
"""Prefix of the metrics of ranks among sampled negatives."""


_LONGEST_NAME = 24
"""Columns that the name of a run may take up in a comparison."""


def metrics_table(runs: Mapping[str, Mapping[str, Interval]], split: str = "") -> str:
    """Format a table with one row per metric and one column per run. ``split`` is the split of the measured rows."""
    keys = list_metric_keys(runs.values())
    rows = [
        [format_metric_name(key), *(str(run[key]) if key in run else None for run in runs.values())] for key in keys
    ]
    return table([_format_metric_head(split), *runs], rows)


def results_table(name: str, results: object) -> str:
    """Format results, of the form of ``results.json``: the measured rows, and each metric."""
    content = to_plain(results)
    rows = format_counts(content)
    metrics = {key: Interval.from_dict(one) for key, one in content["metrics"].items()}
    head = f"{name} ({content['model']}) on {content['split']}: {rows}{_format_weighting(content)}"
    shown, left_out = metrics_table({name: metrics}, content["split"]), left_out_lines(content.get("left_out", {}))
    slices = [slices_table(title, rows) for title, rows in content.get("slices", {}).items() if rows]
    protocol = [f"{key}: {text}" for key, text in content.get("protocol", {}).items()]
    return "\n".join([head, shown, *slices, *protocol, *left_out, *warning_lines(content.get("warnings", ()))])


def slices_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the metrics of the slices of a division, with one row per slice."""
    keys = list_metric_keys(rows.values())
    cells = [[name, *(str(Interval.from_dict(row[key])) for key in keys)] for name, row in rows.items()]
    return "\n" + table([title, *map(format_metric_name, keys)], cells)


def format_counts(content: Mapping[str, Any]) -> str:
    """Format the numbers of measured rows, or of targets. Users of one row each are not counted beside the rows.

    >>> format_counts({"rows": 1200, "users": 1200, "positives": 30})
    '1,200 rows, 30 positive'
    """
    if content.get("objective") == "next_item":
        return f"{content['rows']:,} targets, {content['users']:,} users"
    users = "" if content["users"] == content["rows"] else f"{content['users']:,} users, "
    return f"{content['rows']:,} rows, {users}{content['positives']:,} positive"


def left_out_lines(left_out: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Format the counts of labeled rows that are left out, one line per split and reason.

    >>> left_out_lines({"train": {"label_not_known": 1200, "not_before_measured": 0}})
    ['train: 1,200 labeled rows left out, their labels were not available in time']
    """
    reasons = {
        "label_not_known": "their labels were not available in time",
        "not_before_measured": "their timestamps are not before the measured rows",
    }
    return [
        f"{split}: {counts[key]:,} labeled row{'s' if counts[key] > 1 else ''} left out, {why}"
        for split, counts in left_out.items()
        for key, why in reasons.items()
        if counts.get(key)
    ]


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Format ``Comparison.to_dict()``: each metric of each run, and its difference to the baseline."""
    runs, baseline = comparison["runs"], comparison["baseline"]
    ordered = [baseline, *(run for run in runs if run != baseline)]
    names = _shorten_names(ordered)
    rows = []
    for key in list_metric_keys(runs.values()):
        for index, run in enumerate(ordered):
            row = ["" if index else format_metric_name(key), names[run], str(Interval.from_dict(runs[run][key]))]
            if run == baseline:
                row += ["", "baseline"]
            else:
                difference = comparison["differences"][run][key]
                row += [format_signed(Interval.from_dict(difference)), format_verdict(difference["verdict"])]
            rows.append(row)
    split = comparison.get("split", "")
    counts = format_counts(comparison)
    counts += _format_weighting(comparison)
    head = [f"on {split}: {counts}" if split else counts]
    head += [f"{name}: {run}" for run, name in names.items() if name != run]
    shown = table([_format_metric_head(split), "run", "value", f"minus {names[baseline]}", "verdict"], rows)
    return "\n".join([*head, shown, *warning_lines(comparison.get("warnings", ()))])


def _shorten_names(runs: Sequence[str]) -> dict[str, str]:
    """Return the name of each run in a table: a number for each if one of the names is too long for a column."""
    if max(map(measure_width, runs)) <= _LONGEST_NAME:
        return {run: run for run in runs}
    return {run: f"run {number}" for number, run in enumerate(runs, 1)}


def _format_weighting(content: Mapping[str, Any]) -> str:
    return f", weighted by {content['sample_weight']}" if content.get("sample_weight") else ""


def _format_metric_head(split: str) -> str:
    return f"metric on {split}" if split else "metric"


def list_metric_keys(runs: Any) -> list[str]:
    """Return the keys of the metrics of some runs, first those of ``METRIC_LABELS`` in their order."""
    keys = dict.fromkeys(key for run in runs for key in run)
    return [key for key in METRIC_LABELS if key in keys] + [key for key in keys if key not in METRIC_LABELS]


def describe_metric(key: str) -> str:
    """Return the description of a metric. Empty for an unknown one."""
    return (METRIC_LABELS | RANK_LABELS | LIST_LABELS).get(key.partition("@")[0], ("", ""))[1]


def format_metric_name(key: str) -> str:
    """Return the display name of a metric. For an unknown key it is the key with spaces for underscores.

    >>> format_metric_name("auc"), format_metric_name("log_loss.buy"), format_metric_name("hr@10")
    ('AUC', 'Log loss of buy', 'HR@10')
    >>> format_metric_name("ndcg@5.base"), format_metric_name("ndcg@5.gain")
    ('NDCG@5 of base', 'gain in NDCG@5')
    >>> format_metric_name("token_hr@3_code_1")
    'Token HR@3 of code_1'
    """
    metric, _, task = key.partition(".")
    base, at, cut = metric.partition("@")
    if base == "token_hr":
        cut, _, task = cut.partition("_")
    if base.startswith(SAMPLED):
        return f"sampled {format_metric_name(key.removeprefix(SAMPLED))}"
    if label := (RANK_LABELS | LIST_LABELS).get(base):
        shown = f"{label[0]}{at}{cut}"
        if not task:
            return shown
        return f"gain in {shown}" if task == "gain" else f"{shown} of {task}"
    name = METRIC_LABELS[metric][0] if metric in METRIC_LABELS else metric.replace("_", " ")
    return f"{name} of {task}" if task else name


def format_signed(difference: Interval) -> str:
    """Format a difference with signs: ``+0.0213 [+0.0190, +0.0236]``."""
    if not difference.defined:
        return "undefined"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def format_verdict(verdict: str) -> str:
    """Format a verdict: ``unclear`` becomes ``no clear difference``."""
    return "no clear difference" if verdict == "unclear" else verdict


def write_json(obj: object, target: str | Path) -> None:
    """Write ``obj`` as indented JSON to a file, or to standard output when ``target`` is ``-``.

    Dataclasses, numpy values, paths and intervals become plain JSON. NaN and infinities become null. A file is replaced
    atomically.

    Raises:
        LongRecError: if the file cannot be written.
        TypeError: if a value in ``obj`` has no JSON form.
    """
    text = json.dumps(to_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(Path(target), text)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically, and create its folder.

    Raises:
        LongRecError: if the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a pipe or a device (/dev/stdout) is written to, never replaced
            path.write_text(text, encoding="utf-8")
            return
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        if draft.exists():
            draft.unlink()
        reason = error.strerror or str(error)
        raise LongRecError(str(path), f"cannot be written ({reason})", "a file in a folder you may write to") from None


def to_plain(obj: object) -> Any:
    """Convert ``obj`` to dicts, lists, text, numbers, booleans and None.

    >>> to_plain({"a": np.float32(0.5), "b": (1, float("nan"))})
    {'a': 0.5, 'b': [1, None]}
    """
    if obj is None or isinstance(obj, (str, bool, int)):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if hasattr(obj, "to_dict"):
        return to_plain(obj.to_dict())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: to_plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_plain(value) for key, value in obj.items()}
    if isinstance(obj, np.ndarray):
        return to_plain(obj.tolist())
    if isinstance(obj, np.generic):
        return to_plain(obj.item())
    if isinstance(obj, (list, tuple, set, frozenset)):
        return [to_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"no JSON form for {type(obj).__name__}: {obj!r}")
