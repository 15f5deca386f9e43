"""Sections of a page with results: metrics, differences, learning curves, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longrec.metrics import BETTER, Interval
from longrec.progress import duration
from longrec.reporting import plots
from longrec.reporting.markup import format_card, format_grid, join_names
from longrec.reporting.run import RunView
from longrec.reporting.tables import (
    describe_metric,
    format_metric_name,
    format_signed,
    format_verdict,
    list_metric_keys,
)

_SIDE_BY_SIDE = 4


def format_result_sentences(comparison: Mapping[str, Any], runs: Sequence[RunView]) -> list[str]:
    """Return the comparison in one sentence per run."""
    lines = []
    for run, differences in _select_differences(comparison, runs).items():
        said = []
        for verdict, phrase in (
            ("better", "better on"),
            ("worse", "worse on"),
            ("differs", "different in"),
            ("unclear", "no clear difference in"),
        ):
            names = [
                _format_in_sentence(key) + (f" ({one['value']:+.4f})" if verdict != "unclear" else "")
                for key, one in differences.items()
                if one["verdict"] == verdict and one["value"] is not None
            ]
            if names:
                said.append(f"{phrase} {join_names(names)}")
        if said:
            against = f"<b>{escape(run)}</b> against <b>{escape(comparison['baseline'])}</b>"
            lines.append(f"{against}: {'; '.join(said)}.")
    return lines


def format_warnings(runs: Sequence[RunView], comparison: Mapping[str, Any] | None, further: Sequence[str] = ()) -> str:
    """Return the warnings of the runs and further ones, without repeated sentences."""
    listed: dict[str, list[str]] = {}
    for run in runs:
        for sentence in run.warnings:
            listed.setdefault(sentence, []).append(run.name)
    # On the same split the results of the runs contain the same warnings.
    if comparison and comparison.get("split") not in {run.split for run in runs}:
        for sentence in comparison.get("warnings", ()):
            name, _, said = sentence.partition(": ")
            listed.setdefault(said, []).append(name)
    for sentence in further:
        listed.setdefault(sentence, [run.name for run in runs])
    items = "".join(f"<li>{_format_runs(names, runs)}{escape(sentence)}</li>" for sentence, names in listed.items())
    if not items:
        return ""
    return f'<section class="warnings" role="note"><h2>Warnings</h2><ul>{items}</ul></section>'


def _format_runs(names: Sequence[str], runs: Sequence[RunView]) -> str:
    """Return the runs of a warning. Empty for a warning about all runs."""
    return "" if len(names) == len(runs) else f"<b>{escape(join_names(names))}</b>: "


def _format_split(runs: Sequence[RunView]) -> str:
    """Return the split of the measured rows, for a heading."""
    splits = list(dict.fromkeys(run.split for run in runs))
    return f" on {escape(join_names(splits))}" if splits else ""


def format_metrics(runs: Sequence[RunView], comparison: Mapping[str, Any] | None) -> str:
    """Return the table of metrics (rows) by runs (columns), with the difference to the baseline below each value.

    Args:
        runs: runs and references.
    """
    shown = {run.name: _choose_intervals(run, comparison) for run in runs}
    keys = list_metric_keys(shown.values())
    if not keys:
        return ""
    baseline = comparison["baseline"] if comparison else None
    run_heads = [
        f"{plots.draw_swatch(slot)} {escape(run.name)}"
        f'<span class="hint">{_format_subtitle(run, run.name == baseline)}</span>'
        for slot, run in enumerate(runs)
    ]
    key_heads = [f"{escape(format_metric_name(key))}{_format_hint(key)}" for key in keys]
    cells = [[_format_cell(key, run.name, shown[run.name].get(key), comparison) for run in runs] for key in keys]
    if len(runs) <= _SIDE_BY_SIDE:
        grid = format_grid("Metric", [run.name for run in runs], run_heads, key_heads, cells)
    else:  # more do not fit next to each other: metrics as columns, runs as rows
        names = [format_metric_name(key) for key in keys]
        turned = [list(column) for column in zip(*cells)]
        grid = format_grid("Run", names, [escape(name) for name in names], run_heads, turned, "many")
    about = ""
    if comparison:
        about = (
            '<p class="soft small">In brackets the 95 % interval. Below it the difference to '
            f"<b>{escape(baseline or '')}</b> on the same rows; it is called better or worse only when its own "
            "interval excludes zero. Two intervals may overlap while their difference is clear, because the runs share "
            "their rows.</p>"
        )
    return f'<section><h2>Metrics{_format_split(runs)}</h2>{about}<div class="scroll">{grid}</div></section>'


def _format_cell(key: str, run: str, one: Interval | None, comparison: Mapping[str, Any] | None) -> str:
    if one is None or not one.defined:
        return '<span class="soft">undefined</span>' if one is not None else '<span class="soft">–</span>'
    text = f'<span class="value">{one.value:.4f}</span> <span class="range">[{one.low:.4f}, {one.high:.4f}]</span>'
    difference = (comparison or {}).get("differences", {}).get(run, {}).get(key)
    if not difference or difference["value"] is None:
        return text
    verdict = difference["verdict"]
    change, _, spread = format_signed(Interval.from_dict(difference)).partition(" ")
    return (
        f'{text}<span class="change"><span class="verdict {escape(verdict)}">{escape(format_verdict(verdict))}</span> '
        f"{escape(change)} "
        f'<span class="range">{escape(spread)}</span></span>'
    )


def format_intervals(runs: Sequence[RunView], comparison: Mapping[str, Any] | None) -> str:
    """Return small charts: the differences of a comparison, else the values of each run."""
    slots = {run.name: slot for slot, run in enumerate(runs)}
    cards = []
    if comparison:
        baseline, compared = comparison["baseline"], _select_differences(comparison, runs)
        for key in list_metric_keys(compared.values()):
            rows = [(run, slots[run], Interval.from_dict(differences[key])) for run, differences in compared.items()]
            chart = plots.draw_interval_chart(
                rows, f"difference in {format_metric_name(key)}", reference=0.0, signed=True
            )
            better = BETTER.get(key, "higher" if "higher is better" in describe_metric(key) else "")
            way = {"higher": "to the right is better", "lower": "to the left is better"}.get(better, "")
            cards.append(
                format_card(format_metric_name(key), chart, f"{way or 'neither side is better'}; dashed: no difference")
            )
        head = f"<h2>Differences to {escape(baseline)}{_format_split(runs)}</h2>"
    elif len(runs) > 1:
        for key in list_metric_keys(run.metrics for run in runs):
            rows = [(run.name, slots[run.name], run.metrics[key]) for run in runs if key in run.metrics]
            chart = plots.draw_interval_chart(rows, format_metric_name(key), reference=1.0 if key == "pcoc" else None)
            cards.append(format_card(format_metric_name(key), chart, describe_metric(key)))
        head = f"<h2>Intervals{_format_split(runs)}</h2>"
    cards = [card for card in cards if card]
    return f'<section>{head}<div class="cards">{"".join(cards)}</div></section>' if cards else ""


def format_learning(runs: Sequence[RunView]) -> str:
    """Return charts of training loss and a metric of validation over the epochs, with all runs in one chart."""
    cards = []
    fitted = all(run.progress.get("stopped") == "fitted" for run in runs)  # one validation per setting, no epochs
    headline = next((run.headline for run in runs), "auc")
    for split, measure, name, best in (
        ("train", "loss", "training loss", ""),
        ("valid", headline, f"validation {format_metric_name(headline)}", "highest"),
    ):
        series = [plots.Series(run.name, slot, run.curves.get((split, measure), [])) for slot, run in enumerate(runs)]
        chart = plots.draw_line_chart(series, "setting" if fitted else "epoch", name, best)
        note = (
            "On rows the model never learns from. Ring: the highest point."
            if best
            else "On the rows the model learns from."
        )
        cards.append(format_card(name[0].upper() + name[1:], chart, note))
    cards = [card for card in cards if card]
    if not cards:
        return ""
    legend = _format_legend(runs) if len(runs) > 1 else ""
    return f'<section><h2>Learning</h2>{legend}<div class="cards two">{"".join(cards)}</div></section>'


def format_calibration(runs: Sequence[RunView]) -> str:
    """Return one calibration chart per run and task with predictions."""
    cards = []
    for slot, run in enumerate(runs):
        for task, curve in run.calibrations.items():
            chart = plots.draw_calibration_chart(curve, run.name, slot)
            suffix = f".{task}" if task else ""
            pcoc, gap = run.metrics.get(f"pcoc{suffix}"), run.metrics.get(f"ece{suffix}")
            said = [
                f"PCOC {pcoc.value:.3f}" if pcoc and pcoc.defined else "",
                f"ECE {gap.value:.4f}" if gap and gap.defined else "",
            ]
            head = f"{run.name}: {task}" if task else run.name
            cards.append(format_card(head, chart, ", ".join(text for text in said if text)))
    if not cards:
        return ""
    return (
        f"<section><h2>Calibration{_format_split(runs)}</h2>"
        '<p class="soft small">Rows in bins of rising score, equally many in each. On the '
        "dashed line a score of 0.3 comes true three times in ten. Below it scores are too high, above it too low.</p>"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _select_differences(comparison: Mapping[str, Any], runs: Sequence[RunView]) -> dict[str, Any]:
    """Return the differences of runs. Those of references are only in the table of metrics."""
    names = {run.name for run in runs if not run.is_reference}
    return {run: differences for run, differences in comparison["differences"].items() if run in names}


def _choose_intervals(run: RunView, comparison: Mapping[str, Any] | None) -> dict[str, Interval]:
    """Return the intervals of the comparison, which its differences belong to, else those of the run."""
    intervals = (comparison or {}).get("runs", {}).get(run.name) or {}
    of_tasks = {key: one for key, one in run.metrics.items() if not intervals or "." in key}
    return {key: Interval.from_dict(one) for key, one in intervals.items()} | of_tasks


def _format_subtitle(run: RunView, is_baseline: bool) -> str:
    if run.is_reference:
        return escape(f"no model: {run.model}{', baseline' if is_baseline else ''}")
    said = [f"model {run.model}" if run.model != run.name else ""]
    said.append(f"trained in {duration(run.seconds)}" if run.seconds is not None else "")
    said.append("baseline" if is_baseline else "")
    return escape(", ".join(text for text in said if text))


def _format_in_sentence(key: str) -> str:
    name = format_metric_name(key)
    return escape(name if name.isupper() else name.lower())


def _format_hint(key: str) -> str:
    return f'<span class="hint">{escape(describe_metric(key))}</span>' if describe_metric(key) else ""


def _format_legend(runs: Sequence[RunView]) -> str:
    items = "".join(f"<li>{plots.draw_swatch(slot)} {escape(run.name)}</li>" for slot, run in enumerate(runs))
    return f'<ul class="legend">{items}</ul>'
