"""Results of the evaluation of a pipeline: one table, a folder of files, and what a comparison of two reads.

results.json       metrics of every stage with their intervals, what they depend on, and warnings
requests.parquet   one row per request: row, user, time, and the metrics of its page
items.parquet      the first items of each page
table.txt          the table
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.evaluation.stage_lists import ALONE, FLOOR
from longrec.metrics import Interval, MetricDraws
from longrec.pipeline.trace import SOURCE
from longrec.reporting.tables import format_metric_name, slices_table, write_atomically, write_json
from longrec.tabular import Columns, Tabular
from longrec.terminal_text import table, warning_lines
from longrec.training.checkpoint import replace_file

RESULTS, REQUESTS, ITEMS, TABLE = "results.json", "requests.parquet", "items.parquet", "table.txt"
FORMAT = "longrec pipeline evaluation 1"
SHOWN = ("hr", "ndcg", "recall", "coverage", "diversity", "novelty", "gini", "popularity_bias")
"""Metrics of the table."""
_FLOORS = {"popularity": "popular", "random": "random"}


@dataclass(frozen=True)
class StageMetrics:
    """Metrics of the lists of one stage.

    Attributes:
        values: metric -> float64 ``[L]``, one per request.
        item: int64 ``[N]``, position in the catalog of each of the first items.
        group: int64 ``[N]``, request of each of them.
        drawn: metrics on all requests and on every resample.
    """

    values: Mapping[str, NDArray[np.float64]]
    item: NDArray[np.int64]
    group: NDArray[np.int64]
    drawn: MetricDraws


@dataclass(frozen=True, repr=False)
class PipelineEvaluation(Tabular):
    """Metrics of the list after every stage of a pipeline.

    Attributes:
        pipeline: name of the pipeline.
        digest: identity of its config and bundles.
        split, log: split and prepared log of the requests.
        k: number of items of the page, and cut of the metrics.
        budget: number of items that the sources pass on together.
        requests, available: number of answered requests, and of those that could be.
        users: users of the requests.
        catalog: number of items that could be listed.
        protocol: what the metrics depend on, by name, in words.
        warnings: one sentence per reason for caution.
        stages: metrics by name: ``recall.SOURCE``, ``alone.SOURCE`` (the source at the budget), ``merge``, ``prerank``,
            ``rank``, ``rerank.METHOD``, ``mix``, ``top`` (the page), ``floor.popularity`` and ``floor.random``.
        slices: HR and NDCG of the page by division and slice.
        row, user, time: int64 ``[L]`` of each request.
    """

    pipeline: str
    digest: str
    split: str
    log: str
    k: int
    budget: int
    requests: int
    available: int
    users: int
    catalog: int
    n_resamples: int
    seed: int
    protocol: Mapping[str, str]
    warnings: tuple[str, ...]
    stages: Mapping[str, StageMetrics]
    slices: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    row: NDArray[np.int64] = field(repr=False)
    user: NDArray[np.int64] = field(repr=False)
    time: NDArray[np.int64] = field(repr=False)

    @property
    def metrics(self) -> dict[str, dict[str, Interval]]:
        """Metrics by stage, with 95 % intervals over users."""
        return {name: own.drawn.summarize() for name, own in self.stages.items()}

    @property
    def page(self) -> str:
        """Name of the last stage, whose list is the page."""
        return [name for name in self.stages if self._is_stage(name)][-1]

    def to_columns(self) -> Columns:
        """Return one row per stage and metric, with its interval."""
        rows = [(stage, name, one) for stage, own in self.metrics.items() for name, one in own.items()]
        return {
            "stage": [stage for stage, _, _ in rows],
            "metric": [name for _, name, _ in rows],
            "value": [one.value for _, _, one in rows],
            "low": [one.low for _, _, one in rows],
            "high": [one.high for _, _, one in rows],
        }

    def shown(self) -> tuple[str, Columns]:
        """Return what was measured, and one line per stage."""
        heads, rows = self._list_cells()
        return self._head(), {head: list(cells) for head, cells in zip(heads, zip(*rows))}

    def format(self) -> str:
        """Return the table, the slices of the page, what the metrics depend on, and the warnings."""
        heads, rows = self._list_cells()
        slices = [slices_table(title, own) for title, own in self._slices().items() if own]
        protocol = [f"{name}: {text}" for name, text in self.protocol.items()]
        note = "±: half of the 95 % interval over users"
        return "\n".join(
            [self._head(), "", table(heads, rows), note, *slices, "", *protocol, *warning_lines(self.warnings)]
        )

    def _head(self) -> str:
        drawn = f" (drawn from {self.available:,})" if self.requests < self.available else ""
        cpu = sum(own.drawn.values["cpu_ms"] for name, own in self.stages.items() if self._is_stage(name))
        return (
            f"{self.pipeline} on {self.split}: {self.requests:,} requests{drawn} of {self.users:,} users, "
            f"{self.catalog:,} items, {cpu:.1f} ms of CPU per request"
        )

    @staticmethod
    def _is_stage(name: str) -> bool:
        return not name.startswith((ALONE, FLOOR))

    def _list_cells(self) -> tuple[list[str], list[list[str | None]]]:
        metrics = self.metrics
        names = [f"{name}@{self.k}" for name in SHOWN]
        if self.budget != self.k:
            names.insert(3, f"recall@{self.budget}")
        names = [name for name in names if any(name in own for own in metrics.values())]
        page = self.stages[self.page].values
        if np.array_equal(page[f"hr@{self.k}"], page[f"recall@{self.k}"]):  # one relevant item per request
            names.remove(f"recall@{self.k}")
        heads = ["list", "items", *map(format_metric_name, names), "CPU ms"]
        rows: list[list[str | None]] = [
            [
                self._label(stage),
                f"{own['candidates'].value:,.0f}",
                *(format_half(own.get(name)) for name in names),
                f"{own['cpu_ms'].value:.2f}" if "cpu_ms" in own else None,
            ]
            for stage, own in metrics.items()
        ]
        return heads, rows

    def _label(self, stage: str) -> str:
        if stage.startswith(ALONE):
            return f"{stage.removeprefix(ALONE)} alone, {self.budget}"
        if stage.startswith(FLOOR):
            return f"floor: {_FLOORS[stage.removeprefix(FLOOR)]}"
        return f"{stage} (page)" if stage == self.page else stage.removeprefix(SOURCE)

    def _slices(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            title: {name: {key: one.to_dict() for key, one in row.items()} for name, row in rows.items()}
            for title, rows in self.slices.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers for JSON, without the values of single requests."""
        left_out = ("stages", "slices", "row", "user", "time")
        content = {name: value for name, value in vars(self).items() if name not in left_out}
        metrics = {stage: {key: one.to_dict() for key, one in own.items()} for stage, own in self.metrics.items()}
        return {
            "format": FORMAT,
            **content,
            "protocol": dict(self.protocol),
            "warnings": list(self.warnings),
            "page": self.page,
            "stages": metrics,
            "slices": self._slices(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write the files of the evaluation into a folder, and return it. Files of an earlier one are replaced."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / RESULTS).unlink(missing_ok=True)  # written last, so that a stopped save leaves no mixed results
        page = self.stages[self.page]
        values = {"row": self.row, "user": self.user, "time": self.time, **page.values}
        cpu = sum(own.values["cpu_ms"] for name, own in self.stages.items() if self._is_stage(name))
        requests = pa.table({**values, "cpu_ms": cpu})
        items = pa.table({"request": page.group, "item": page.item})
        replace_file(path / REQUESTS, lambda partial: pq.write_table(requests, partial))
        replace_file(path / ITEMS, lambda partial: pq.write_table(items, partial))
        write_atomically(path / TABLE, self.format() + "\n")
        write_json(self.to_dict(), path / RESULTS)
        return path


def format_half(one: Interval | None) -> str | None:
    """Format an interval in little space: its value and half of its width.

    >>> format_half(Interval(0.1234, 0.1, 0.15)), format_half(None)
    ('0.123 ±0.025', None)
    """
    return None if one is None or not one.defined else f"{one.value:.3f} ±{(one.high - one.low) / 2:.3f}"
