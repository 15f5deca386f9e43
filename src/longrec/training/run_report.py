"""HTML report of one or several finished runs: collection of its content, and where it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from longrec.data.facts import read_facts
from longrec.data.log import Log
from longrec.errors import ConfigError, LongRecError, RunError
from longrec.metrics import Comparison, Interval
from longrec.reporting.page import Page, write_page
from longrec.reporting.run import RunView, SegmentView, read_run
from longrec.reporting.tables import format_counts
from longrec.training.analysis import Analysis, FinishedRun, Reference, count_positives
from longrec.training.click_analysis import ClickAnalysis
from longrec.training.device import CPU, prepare_torch
from longrec.training.list_analysis import ListAnalysis
from longrec.training.next_item_analysis import NextItemAnalysis
from longrec.training.row_groups import group_rows
from longrec.training.same_rows import check_same_rows

FILE = "report.html"
ANALYSES: dict[str, Analysis] = {"clicks": ClickAnalysis(), "lists": ListAnalysis(), "next_item": NextItemAnalysis()}
_LONGEST_NAME = 80


def write_report(
    runs: Sequence[FinishedRun],
    into: str | Path | None = None,
    *,
    title: str | None = None,
    notes: Mapping[str, str] | None = None,
    next_steps: Sequence[str] = (),
) -> Path:
    """Write the report of runs of one objective as one HTML file.

    Runs that measured the same rows are compared, with the first as the baseline.

    Args:
        into: the file. Default: ``report.html`` in the folder of a single run, else ``compare-NAMES.html`` beside the
            folder of the first run.
        title: heading. Default: the names of the runs.
        notes: further tiles below the heading, by name.
        next_steps: commands and sentences at the end of the page.

    Raises:
        ConfigError: no runs, the same run twice, or runs of different objectives.
        RunError: a run folder that cannot be read.
    """
    names = _name_runs(runs)
    path = Path(into) if into is not None else _choose_path(runs)
    collected = [_Collected(run, name) for run, name in zip(runs, names)]
    same = _have_same_rows(collected)
    shared = collected[:1] if same else collected
    for one in shared:
        one.predict_references()
    comparison = _compare(collected) if same else None
    page = Page(
        title=title or ", ".join(names),
        tiles={**_describe(collected), **(notes or {})},
        runs=[one.view for one in collected],
        references=[view for one in shared for view in one.describe_references(comparison)],
        comparison=comparison,
        facts=_collect_facts(collected),
        warnings=_warn(collected),
        next_steps=next_steps,
    )
    return write_page(path, page)


def _name_runs(runs: Sequence[FinishedRun]) -> list[str]:
    """Return one name per run: that of its folder, or its path where two folders have one name."""
    if not runs:
        raise ConfigError("report", ["needs a run or more"])
    kinds = {run.objective.name for run in runs}
    if len(kinds) > 1:
        faults = [f"needs runs of one objective, got {', '.join(sorted(kinds))}; write one report for each"]
        raise ConfigError("report", faults)
    names = [run.name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError("report", ["the same run is named twice"])
    return names


def _choose_path(runs: Sequence[FinishedRun]) -> Path:
    if len(runs) == 1:
        return runs[0].folder / FILE
    name = "-".join(run.name for run in runs)
    name = name if len(name) <= _LONGEST_NAME else f"{runs[0].name}-and-{len(runs) - 1}-more"
    return runs[0].folder.parent / f"compare-{name}.html"


class _Collected:
    """Content of the report about one run. Without its prepared log, only what the run folder holds."""

    def __init__(self, run: FinishedRun, name: str) -> None:
        self.run, self.analysis = run, ANALYSES[run.objective.name]
        self.view: RunView = replace(read_run(run.folder), name=name)
        self.table: pa.Table | None = None
        self.references: list[Reference] = []
        self.log: Log | None = None
        self.faults: list[str] = []
        try:
            self.table = run.predictions(self.view.split)
            self.log = run.log()
            self._check_rows(self.log, self.table)
        except RunError as error:
            self.log = None
            reason = " ".join(f"{error.where}: {error.found}".split())
            self.faults.append(f"references, segments and samples are left out ({reason})")
            return
        self.view = replace(
            self.view,
            segments=self._measure_segments(self.log, self.table),
            samples=self._explain(self.log, self.table),
        )

    @staticmethod
    def _check_rows(log: Log, table: pa.Table) -> None:
        """Raise a RunError if the predictions are not those of the rows of the log."""
        times = log.events.times
        rows = table["row"].to_numpy()
        if len(rows) and (rows.max() >= len(log) or (times.take(rows) != table["time"].to_numpy()).any()):
            raise RunError(str(log.folder), "a log with other rows than the predictions", "the log of the run")

    def _measure_segments(self, log: Log, table: pa.Table) -> tuple[SegmentView, ...]:
        segments = []
        for group in group_rows(log, table["row"].to_numpy()):
            for code, name in enumerate(group.names):
                own = table.filter(pa.array(group.codes == code))
                if len(own):
                    values = self.analysis.measure_segment(own, self.run.config.evaluate)
                    segments.append(SegmentView(group.title, name, len(own), count_positives(own), values))
        return tuple(segments)

    def _explain(self, log: Log, table: pa.Table) -> tuple[Mapping[str, Any], ...]:
        """Return the explained samples. A model whose code or weights are gone cannot be explained."""
        job = self.run.config
        try:
            with prepare_torch(job.fit.threads, job.fit.seed, CPU):
                return tuple(self.analysis.explain_samples(log, self.run.model(), table, job))
        except LongRecError as error:
            self.faults.append(f"samples are left out ({' '.join(str(error).split())})")
            return ()

    def predict_references(self) -> None:
        """Compute the predictions of the references."""
        if self.log is not None and self.table is not None:
            fit, evaluate = self.run.config.fit, self.run.config.evaluate
            self.references = self.analysis.predict_references(self.log, self.table, fit, evaluate)

    def describe_references(self, comparison: Mapping[str, Any] | None) -> list[RunView]:
        """Return the measured references.

        Args:
            comparison: comparison that holds their metrics. None: the names of the references get that of the run.
        """
        views = []
        for one in self.references:
            evaluate, split = self.run.config.evaluate, self.view.split
            own = (comparison or {}).get("runs", {}).get(one.name)
            if own is None or any(name.startswith("score.") for name in one.table.column_names):
                metrics = self.run.objective.measure(one.table, one.name, one.about, split, evaluate).metrics
            else:
                metrics = {key: Interval.from_dict(interval) for key, interval in own.items()}
            name = one.name if comparison else f"{one.name} ({self.view.name})"
            counts = (self.view.rows, self.view.users, self.view.positives)
            views.append(RunView(name, one.about, split, *counts, metrics, is_reference=True))
        return views


def _have_same_rows(collected: Sequence[_Collected]) -> bool:
    first = collected[0]
    if any(one.table is None or one.view.split != first.view.split for one in collected):
        return False
    for one in collected[1:]:
        try:
            columns = first.run.objective.same_columns
            check_same_rows(columns, first.view.split, first.view.name, first.table, one.view.name, one.table)
        except RunError as error:
            first.faults.append(f"the runs are not compared: {error.where}: {error.found}")
            return False
    return True


def _compare(collected: Sequence[_Collected]) -> dict[str, Any] | None:
    """Return the comparison of runs and references. The baseline is the first run, or the counts for a single run."""
    first = collected[0]
    tables = {one.view.name: one.table for one in collected}
    tables |= {one.name: one.table for one in first.references if one.name not in tables}
    if len(tables) < 2:
        return None
    evaluate = first.run.config.evaluate
    comparison: Comparison = first.run.objective.compare(
        tables,
        evaluate,
        first.view.split,
        baseline=first.view.name if len(collected) > 1 else first.references[-1].name,
        resample=evaluate.resample,
        n_resamples=evaluate.n_resamples,
        seed=evaluate.seed,
    )
    return comparison.to_dict()


def _collect_facts(collected: Sequence[_Collected]) -> dict[str, dict[str, Any]]:
    """Return the facts of each prepared log, by the names of the runs that read it."""
    by_folder: dict[Path, list[str]] = {}
    for one in collected:
        if one.log is not None:
            by_folder.setdefault(one.log.folder, []).append(one.view.name)
    return {", ".join(names): read_facts(folder).to_dict() for folder, names in by_folder.items()}


def _warn(collected: Sequence[_Collected]) -> list[str]:
    several = len(collected) > 1
    return [f"{one.view.name}: {fault}" if several else fault for one in collected for fault in one.faults]


def _describe(collected: Sequence[_Collected]) -> dict[str, str]:
    first = collected[0]
    results, view = first.run.results, first.view
    tiles = {"Measured on": f"{view.split}: {format_counts({**results, 'split': view.split})}"}
    if len(collected) == 1:
        tiles = {"Model": view.model, **tiles}
    source = first.run.config.data
    tiles["Log"] = str(source.log)
    tiles["Split"] = source.split.by
    return tiles | {name.capitalize(): text for name, text in results.get("protocol", {}).items()}
