"""Counters of a server in the Prometheus text format: a few fixed arrays, no locks, no package.

Each worker process has its counters in a memory-mapped file of its own, and the worker that handles a request for
metrics adds up all files. Counts of dead workers stay, so that a total never decreases.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PROTOCOL = ("/v2/models/infer", "/v2/models", "/v2")
ROUTES = ("/rank", "/recommend", "/events", "/items", *_PROTOCOL, "/health", "/metrics", "/", "other")
STATUSES = (200, 400, 404, 405, 413, 422, 500, 503)
SECONDS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
CANDIDATES = (1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000)
EVENTS = (("new", "none"), ("new", "some"), ("again", "none"), ("again", "some"))
"""Kinds of recorded events: new or recorded again, without or with feedback."""

_COUNTS = len(ROUTES) * len(STATUSES)
_LATENCY = len(SECONDS) + 2  # one bucket above all edges, and the sum
_RANKED = _COUNTS + len(ROUTES) * _LATENCY
_RECORDED = _RANKED + len(CANDIDATES) + 2
_STAGES = _RECORDED + len(EVENTS)
_STAGE = _LATENCY + 1  # its latency, and its fallbacks


class ServerMetrics:
    """Counters of one process.

    Args:
        folder: folder of the files of all workers. None for a server of one process.
        stages: names of the stages of all routes, the same in all workers.
    """

    def __init__(self, folder: Path | None = None, stages: Sequence[str] = ()) -> None:
        self._folder, self._size = folder, _STAGES + len(stages) * _STAGE
        self._stages = {name: _STAGES + at * _STAGE for at, name in enumerate(stages)}
        self._cells: NDArray[np.float64]
        if folder is None:
            self._cells = np.zeros(self._size)
        else:
            self._cells = np.memmap(folder / f"{os.getpid()}.counts", np.float64, "w+", shape=(self._size,))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        at = ROUTES.index(route)
        nearest = status if status in STATUSES else (500 if status >= 500 else 400 if status >= 400 else 200)
        self._cells[at * len(STATUSES) + STATUSES.index(nearest)] += 1
        start = _COUNTS + at * _LATENCY
        self._cells[start + bisect_left(SECONDS, seconds)] += 1
        self._cells[start + _LATENCY - 1] += seconds

    def count_ranking(self, candidates: int) -> None:
        """Count one ranking and its candidates."""
        self._cells[_RANKED + bisect_left(CANDIDATES, candidates)] += 1
        self._cells[_RECORDED - 1] += candidates

    def count_event(self, has_feedback: bool, is_repeat: bool) -> None:
        """Count one event, with or without feedback, new or recorded again."""
        self._cells[_RECORDED + 2 * is_repeat + has_feedback] += 1

    def count_stages(self, seconds: Mapping[str, float], fallbacks: Sequence[str]) -> None:
        """Count the stages of one request.

        Args:
            seconds: duration of each stage.
            fallbacks: stages that were left out because they were late. Their durations are not counted.
        """
        for name in fallbacks:
            self._cells[self._stages[name] + _LATENCY] += 1
        for name, duration in seconds.items():
            if name not in fallbacks:
                start = self._stages[name]
                self._cells[start + bisect_left(SECONDS, duration)] += 1
                self._cells[start + _LATENCY - 1] += duration

    def count_shed(self, route: str, reason: str) -> None:
        """Count a request that is refused because of load."""

    def count_wait(self, seconds: float) -> None:
        """Count the time that a request has waited for the model."""

    def set_queue(self, length: int) -> None:
        """Note how many requests wait for the model."""

    def render(self, model: str, version: str) -> str:
        """Return the metrics page with the counts of all workers."""
        cells = self._sum_counters()
        lines = [
            "# HELP longrec_model_info The model that is served.",
            "# TYPE longrec_model_info gauge",
            f'longrec_model_info{{model="{model}",version="{version}"}} 1',
            "# HELP longrec_requests_total Requests, by route and status.",
            "# TYPE longrec_requests_total counter",
        ]
        counts = cells[:_COUNTS].reshape(len(ROUTES), len(STATUSES))
        for route, status in zip(*(axis.tolist() for axis in np.nonzero(counts))):
            labels = f'route="{ROUTES[route]}",status="{STATUSES[status]}"'
            lines.append(f"longrec_requests_total{{{labels}}} {counts[route, status]:.0f}")
        lines += [
            "# HELP longrec_request_seconds Seconds from the head of a request to its response.",
            "# TYPE longrec_request_seconds histogram",
        ]
        latency = cells[_COUNTS:_RANKED].reshape(len(ROUTES), _LATENCY)
        for index, route in enumerate(ROUTES):
            if latency[index, :-1].any():
                lines += _format_histogram("longrec_request_seconds", f'route="{route}",', SECONDS, latency[index])
        lines += [
            "# HELP longrec_candidates Candidates per ranking.",
            "# TYPE longrec_candidates histogram",
            *_format_histogram("longrec_candidates", "", CANDIDATES, cells[_RANKED:_RECORDED]),
            "# HELP longrec_events_total Recorded events, new or recorded again, with or without feedback.",
            "# TYPE longrec_events_total counter",
        ]
        for (occurrence, feedback), count in zip(EVENTS, cells[_RECORDED:_STAGES].tolist()):
            if count:
                lines.append(f'longrec_events_total{{occurrence="{occurrence}",feedback="{feedback}"}} {count:.0f}')
        return "\n".join([*lines, *self._format_stages(cells)]) + "\n"

    def _format_stages(self, cells: NDArray[np.float64]) -> list[str]:
        lines = [
            "# HELP longrec_stage_seconds Seconds of a stage, of requests in which it was not left out.",
            "# TYPE longrec_stage_seconds histogram",
        ]
        for name, start in self._stages.items():
            lines += _format_histogram(
                "longrec_stage_seconds", f'stage="{name}",', SECONDS, cells[start : start + _LATENCY]
            )
        lines += [
            "# HELP longrec_fallbacks_total Requests in which a stage was left out because it was late.",
            "# TYPE longrec_fallbacks_total counter",
        ]
        for name, start in self._stages.items():
            lines.append(f'longrec_fallbacks_total{{stage="{name}"}} {cells[start + _LATENCY]:.0f}')
        return lines

    def _sum_counters(self) -> NDArray[np.float64]:
        if self._folder is None:
            return self._cells
        files = [np.fromfile(path, np.float64) for path in self._folder.glob("*.counts")]
        whole = [
            cells for cells in files if len(cells) == self._size
        ]  # the file of a worker that is starting may be empty
        total: NDArray[np.float64] = np.sum(whole, axis=0)
        return total


def _format_histogram(name: str, labels: str, edges: tuple[float, ...], cells: NDArray[np.float64]) -> list[str]:
    counts = np.cumsum(cells[:-1])
    lines = [f'{name}_bucket{{{labels}le="{edge:g}"}} {count:.0f}' for edge, count in zip(edges, counts)]
    own = f"{{{labels.rstrip(',')}}}" if labels else ""
    return [
        *lines,
        f'{name}_bucket{{{labels}le="+Inf"}} {counts[-1]:.0f}',
        f"{name}_sum{own} {cells[-1]:.9g}",
        f"{name}_count{own} {counts[-1]:.0f}",
    ]
