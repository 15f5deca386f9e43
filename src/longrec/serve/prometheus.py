"""Metrics of a server: counted in a few fixed arrays without locks, and written by prometheus-client.

The counters of prometheus-client lock and look up labels, which costs several times as much per request. Each worker
process has its counts in a memory-mapped file of its own, and the worker that handles a request for metrics adds up all
files. Counts of dead workers stay, so that a total never decreases. Their queues are gone.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_PROTOCOL = ("/v2/models/infer", "/v2/models", "/v2")
_REQUESTS = ("/rank", "/recommend", "/events", "/items", "/reload", "/history")
ROUTES = (*_REQUESTS, *_PROTOCOL, "/health", "/metrics", "/", "other")
STATUSES = (200, 400, 401, 403, 404, 405, 413, 415, 421, 422, 500, 503)
REASONS = ("queue", "deadline", "gone", "connections", "bodies", "store")
"""Reasons to turn a request away: a full queue, a deadline that passed, a client that left, too many connections."""
SECONDS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
CANDIDATES = (1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000)
EVENTS = (("new", "none"), ("new", "some"), ("again", "none"), ("again", "some"))
"""Kinds of recorded events: new or recorded again, without or with feedback."""

_LATENCY = len(SECONDS) + 2  # one bucket above all edges, and the sum
_COUNTS = len(ROUTES) * len(STATUSES)
_RANKED = _COUNTS + len(ROUTES) * _LATENCY
_RECORDED = _RANKED + len(CANDIDATES) + 2
_SHED = _RECORDED + len(EVENTS)
_WAITED = _SHED + len(ROUTES) * len(REASONS)
_QUEUE = _WAITED + _LATENCY
_STAGES = _QUEUE + 1
_OTHER = "other"
_STAGE = _LATENCY + 1  # its latency, and its fallbacks

_ROUTE_INDEX = {route: index for index, route in enumerate(ROUTES)}
_STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}


class ServerMetrics:
    """Counters of one process.

    Args:
        folder: folder of the files of all workers. None for a server of one process.
        stages: names of the stages of all routes, the same in all workers. Stages of a bundle that replaces the first
            one and that have other names are counted as ``other``.
    """

    def __init__(self, folder: Path | None = None, stages: Sequence[str] = ()) -> None:
        self._folder, self._size = folder, _STAGES + (len(stages) + 1) * _STAGE
        self._stages = {name: _STAGES + at * _STAGE for at, name in enumerate([*stages, _OTHER])}
        self._other = self._stages[_OTHER]
        self._cells: NDArray[np.float64]
        if folder is None:
            self._cells = np.zeros(self._size)
        else:
            # A process id returns after a while, so it alone would empty the file of a dead worker.
            path = folder / f"{os.getpid()}.{time.time_ns()}.counts"
            self._cells = np.memmap(path, np.float64, "w+", shape=(self._size,))
            weakref.finalize(self, os.close, _lock(path))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        at = _ROUTE_INDEX[route]
        nearest = status if status in _STATUS_INDEX else (500 if status >= 500 else 400 if status >= 400 else 200)
        self._cells[at * len(STATUSES) + _STATUS_INDEX[nearest]] += 1
        self._observe(_COUNTS + at * _LATENCY, seconds)

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
            self._cells[self._stages.get(name, self._other) + _LATENCY] += 1
        for name, duration in seconds.items():
            if name not in fallbacks:
                self._observe(self._stages.get(name, self._other), duration)

    def count_shed(self, route: str, reason: str) -> None:
        """Count one request that was turned away, with its reason of ``REASONS``."""
        self._cells[_SHED + _ROUTE_INDEX[route] * len(REASONS) + REASONS.index(reason)] += 1

    def count_wait(self, seconds: float) -> None:
        """Count the wait of one request in the queue."""
        self._observe(_WAITED, seconds)

    def set_queue(self, length: int) -> None:
        """Set the number of requests that wait in this process now."""
        self._cells[_QUEUE] = length

    def _observe(self, start: int, seconds: float) -> None:
        """Add a duration to the histogram whose cells begin at ``start``."""
        self._cells[start + bisect_left(SECONDS, seconds)] += 1
        self._cells[start + _LATENCY - 1] += seconds

    def render(self, model: str, version: str, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics page with the counts of all workers, and its content type.

        Args:
            accept: header of the request: OpenMetrics for who asks for it, else the text format of Prometheus.
        """
        page = _Page(self._sum_counters(), self._stages, model, version)
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, media_type = choose_encoder("")
        return encode(page), media_type

    def _sum_counters(self) -> NDArray[np.float64]:
        if self._folder is None:
            return self._cells
        total = np.zeros(self._size)
        for path in self._folder.glob("*.counts"):
            cells = np.fromfile(path, np.float64)
            if len(cells) != self._size:
                continue  # the file of a worker that is starting may be empty
            if cells[_QUEUE] and not _is_locked(path):
                cells[_QUEUE] = 0
            total += cells
        return total


def _lock(path: Path) -> int:
    """Lock the file of this process until it ends, however it ends. Return the file descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _is_locked(path: Path) -> bool:
    """True if the process that counts in a file is alive."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class _Page(Collector):
    """Metrics of one page, from the cells of all workers."""

    def __init__(self, cells: NDArray[np.float64], stages: Mapping[str, int], model: str, version: str) -> None:
        self._cells, self._stages, self._model, self._version = cells, stages, model, version

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics. Combinations of labels that were never counted are left out."""
        cells = self._cells
        info = GaugeMetricFamily("longrec_model_info", "The model that is served.", labels=("model", "version"))
        info.add_metric((self._model, self._version), 1)
        yield info
        counts = cells[:_COUNTS].reshape(len(ROUTES), len(STATUSES))
        yield _build_counters("requests", "Requests, by route and status.", "status", STATUSES, counts)
        seconds = HistogramMetricFamily(
            "longrec_request_seconds", "Seconds from the head of a request to its response.", labels=("route",)
        )
        for route, row in zip(ROUTES, cells[_COUNTS:_RANKED].reshape(len(ROUTES), _LATENCY)):
            if row[:-1].any():
                seconds.add_metric((route,), *_build_histogram(SECONDS, row))
        yield seconds
        ranked, ranked_sum = _build_histogram(CANDIDATES, cells[_RANKED:_RECORDED])
        yield HistogramMetricFamily("longrec_candidates", "Candidates per ranking.", ranked, ranked_sum)
        events = CounterMetricFamily(
            "longrec_events",
            "Recorded events, new or recorded again, with or without feedback.",
            labels=("occurrence", "feedback"),
        )
        for labels, count in zip(EVENTS, cells[_RECORDED:_SHED].tolist()):
            if count:
                events.add_metric(labels, count)
        yield events
        shed = cells[_SHED:_WAITED].reshape(len(ROUTES), len(REASONS))
        yield _build_counters("shed", "Requests that were turned away, by route and reason.", "reason", REASONS, shed)
        yield GaugeMetricFamily("longrec_queue_length", "Requests that wait now.", float(cells[_QUEUE]))
        waited, waited_sum = _build_histogram(SECONDS, cells[_WAITED:_QUEUE])
        yield HistogramMetricFamily(
            "longrec_queue_wait_seconds", "Seconds that requests waited in the queue.", waited, waited_sum
        )
        yield from self._collect_stages()

    def _collect_stages(self) -> Iterable[Metric]:
        seconds = HistogramMetricFamily(
            "longrec_stage_seconds",
            "Seconds of a stage, of requests in which it was not left out.",
            labels=("stage",),
        )
        fallbacks = CounterMetricFamily(
            "longrec_fallbacks",
            "Requests in which a stage was left out because it was late.",
            labels=("stage",),
        )
        for name, start in self._stages.items():
            seconds.add_metric((name,), *_build_histogram(SECONDS, self._cells[start : start + _LATENCY]))
            fallbacks.add_metric((name,), float(self._cells[start + _LATENCY]))
        return seconds, fallbacks


def _build_counters(
    name: str, text: str, label: str, values: Sequence[int | str], counts: NDArray[np.float64]
) -> CounterMetricFamily:
    """Return a counter by route and one more label, from ``counts`` ``[routes, values]``."""
    family = CounterMetricFamily(f"longrec_{name}", text, labels=("route", label))
    for route, value in zip(*(axis.tolist() for axis in np.nonzero(counts))):
        family.add_metric((ROUTES[route], str(values[value])), float(counts[route, value]))
    return family


def _build_histogram(edges: Sequence[float], cells: NDArray[np.float64]) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative buckets and the sum of a histogram, from its counts and its sum."""
    names = [*(f"{edge:g}" for edge in edges), "+Inf"]
    return list(zip(names, np.cumsum(cells[:-1]).tolist())), float(cells[-1])
