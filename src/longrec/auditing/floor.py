"""The counting rule as a floor, under four protocols that differ only in the order of events.

    N1  published order: each user's last event is the target, the one before is left out of training
    N2  strict: the targets and counts of N1; a request holds events of earlier times only
    N3  shuffled: N1 with the order of equal times drawn at random
    N4  one timeline: counts before one time for all users, the first later event of each is the target

The rule is CoVisit with one setting. A trained model below it has learned less than a count of neighbors.

Shapes: T targets, R targets of a block, V rows of the item table, L events of histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.auditing.events import Events
from longrec.auditing.finding import ALARM, NOTICE, OK, Finding, bound, skip
from longrec.data.availability import expand_ranges
from longrec.data.settings import Split
from longrec.data.splits import compute_time_cutoffs
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.metrics.next_item import next_item_metrics
from longrec.models.covisit import CoVisit, CoVisitConfig
from longrec.nn.embedding import RESERVED

_SETTINGS = {"window": 10, "back": 0.5, "alpha": 0.3, "decay": 0.6}
_LENGTH = 50
_TARGETS, _FEWEST, _CELLS = 25_000, 1_000, 400_000_000
"""Most and fewest sampled targets, and the number of scores between them: a second takes about 100 million."""
_LEAST = 200
"""Least number of targets: with fewer, the standard error exceeds the metric."""
_SCORES = 3_000_000
_GAP, _LARGE = 0.05, 0.2
"""Relative gaps of HR@10: twice the standard error on 20,000 users, and more than the progress of most papers."""
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class _Requests:
    """Events to count, histories and targets, as positions in the events.

    Attributes:
        train: True for events that are counted, bool ``[N]``.
        first: first event of the user of each target, ``[T]``.
        stops: ends of the histories, ``[T]``.
        seen: ends of the events whose items are left out of the ranking, ``[T]``.
        target: event of each target, ``[T]``.
        existing: leave items without a counted event out of the ranking.
    """

    train: NDArray[np.bool_]
    first: NDArray[np.int64]
    stops: NDArray[np.int64]
    seen: NDArray[np.int64]
    target: NDArray[np.int64]
    existing: bool = False


def check_floor(events: Events, seed: int = 0) -> list[Finding]:
    """Return HR@10 and NDCG@10 of the counting rule under the protocols, and what their gaps say.

    Args:
        seed: of the order drawn for N3, and of the sample of users.
    """
    if events.label is not None:
        events = events.select(events.label > 0.5)
    requests = _leave_one_out(events, events.last, seed)
    if len(requests.target) < _LEAST:
        return [skip("floor", "counting rule", f"fewer than {_LEAST} users with three events")]
    model = _count(events, requests.train)
    n1 = _measure(events, requests, model)
    findings = [_describe("N1 published", n1, OK, "")]
    if events.time is None:
        return findings
    if events.tied.any():
        n2 = _measure(events, _cut_ties(events, requests), model)
        findings.append(_compare("N2 strict", n1, n2, _STRICT, _STRICT_DO, alarm=False))
        random = np.random.default_rng(seed).random(len(events))
        shuffled = events.reorder(np.lexsort([random, events.time, events.user]))
        requests = _leave_one_out(shuffled, shuffled.last, seed)
        n3 = _measure(shuffled, requests, _count(shuffled, requests.train))
        findings.append(_compare("N3 ties shuffled", n1, n3, _SHUFFLED, _SHUFFLED_DO, alarm=True))
    line = _cut_time(events, seed)
    if len(line.target) >= _LEAST:
        n4 = _measure(events, line, _count(events, line.train))
        return [*findings, _describe("N4 one timeline", n4, OK, "")]
    return [*findings, skip("floor", "counting rule, N4 one timeline", f"fewer than {_LEAST} users on both sides")]


_STRICT = (
    "In the published order a request holds events of the same time as its target, often of one basket. The gap is "
    "what they are worth, and no model has them when it is asked beforehand."
)
_STRICT_DO = "Report N2 as the result, and N1 only to compare with published numbers."
_SHUFFLED = (
    "Only the order inside ties differs, and the log does not have it. A gap says that the published order holds "
    "information about the target that the users did not leave there."
)
_SHUFFLED_DO = "Look at the findings about tie order. Report N3 beside N1."


def _leave_one_out(events: Events, last: NDArray[np.int64], seed: int) -> _Requests:
    lengths = np.diff(events.offsets)
    enough = lengths >= 3
    train = np.ones(len(events), bool)
    train[last[enough]] = False
    train[last[enough] - 1] = False
    target = _sample(events, last[enough], seed)
    first = target - events.rank_in_user[target]
    return _Requests(train, first, target, target, target)


def _sample(events: Events, target: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    most = max(_FEWEST, min(_TARGETS, _CELLS // (int(events.item.max()) + 1)))
    if len(target) <= most:
        return target
    return np.sort(np.random.default_rng(seed).choice(target, most, replace=False))


def _cut_ties(events: Events, requests: _Requests) -> _Requests:
    """Return requests whose histories end before the first event with the time of the target."""
    index = np.arange(len(events))
    start = np.maximum.accumulate(np.where(events.tied, 0, index))
    return _Requests(requests.train, requests.first, start[requests.target], requests.seen, requests.target)


def _cut_time(events: Events, seed: int) -> _Requests:
    """Return requests whose counts and histories end at one time for all users."""
    assert events.time is not None
    cut = compute_time_cutoffs(Split(valid=0.0, test=0.1), events.time, True, "")[1]
    train = events.time < cut
    after = np.flatnonzero(~train & events.follows)
    after = after[train[after - 1]]
    # One target of each user, also where the order of its events contradicts the time.
    target = _sample(events, after[np.unique(events.user[after], return_index=True)[1]], seed)
    first = target - events.rank_in_user[target]
    return _Requests(train, first, target, target, target, existing=True)


def _count(events: Events, train: NDArray[np.bool_]) -> CoVisit:
    """Return the rule with the counts of some events, bool ``[N]``."""
    size = _count_rows(events)
    field = Field("item", "id", size, side="item")
    model = CoVisit(CoVisitConfig.model_validate(_SETTINGS), Fields((field,), {"seen": (field,)}))
    at = np.flatnonzero(train)
    counts = np.bincount(np.cumsum(~events.follows)[at] - 1, minlength=len(events.offsets) - 1)
    ids = torch.from_numpy((events.item[at] + RESERVED).astype(np.int32))
    model.fit_statistics([{"seen": HistoryBatch({"item": ids}, _offsets(counts))}])
    model.select(next(model.alternatives()))
    return model


def _count_rows(events: Events) -> int:
    return int(events.item.max()) + 1 + RESERVED


def _measure(events: Events, requests: _Requests, model: CoVisit) -> tuple[float, float, int]:
    """Return HR@10, NDCG@10 and the number of targets."""
    ids, size = torch.from_numpy((events.item + RESERVED).astype(np.int32)), _count_rows(events)
    catalog = {"item": torch.arange(RESERVED, size, dtype=torch.int32)}
    exists = np.zeros(size - RESERVED, bool)
    exists[events.item[requests.train]] = True
    absent = np.flatnonzero(~exists)
    ranks, block = np.empty(len(requests.target)), max(1, _SCORES // size)
    with torch.inference_mode():
        for start in range(0, len(ranks), block):
            own = slice(start, start + block)
            first = np.maximum(requests.first[own], requests.stops[own] - _LENGTH)
            rows, ends = expand_ranges(first, np.maximum(requests.stops[own] - first, 0))
            history = HistoryBatch({"item": ids[torch.from_numpy(rows)]}, torch.from_numpy(ends))
            batch = Batch(Layout.catalog(len(first), 0), {}, {}, {"seen": history})
            scores = model.score_catalog(batch, catalog).numpy()
            if requests.existing:
                scores[:, absent] = -1.0
            ranks[own] = _rank(scores, events, requests, own)
    metrics = next_item_metrics(ranks)
    return metrics["hr@10"], metrics["ndcg@10"], len(ranks)


def _offsets(counts: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.append(0, np.cumsum(counts)).astype(np.int64))


def _rank(scores: NDArray[np.float32], events: Events, requests: _Requests, own: slice) -> NDArray[np.float64]:
    """Return the rank of each target among the items that the user has not had, ties at mid rank."""
    first, stop, target = requests.first[own], requests.seen[own], events.item[requests.target[own]]
    row = np.arange(len(target))
    # A target that is absent scores as an item without neighbors.
    best = np.maximum(scores[row, target], 0.0)
    seen, ends = expand_ranges(first, stop - first)
    scores[np.repeat(row, np.diff(ends)), events.item[seen]] = -1.0
    scores[row, target] = best
    above = np.count_nonzero(scores > best[:, None], axis=1)
    equal = np.count_nonzero(scores == best[:, None], axis=1) - 1
    return above + equal / 2


def _describe(
    name: str, measured: tuple[float, float, int], verdict: str, gap: str, why: str = "", do: str = ""
) -> Finding:
    hit, ndcg, count = measured
    return Finding(
        "floor",
        f"counting rule at 10, {name}",
        f"HR {hit:.4f}, NDCG {ndcg:.4f}{gap}",
        "",
        verdict,
        hit,
        why
        or f"Measured on {count:,} targets. A count of neighbors without training. "
        "A model whose result on this log is below has learned less.",
        do or "Report it in the first row of the table.",
        {"hr@10": hit, "ndcg@10": ndcg, "targets": count, **_SETTINGS},
    )


def _compare(
    name: str, n1: tuple[float, float, int], other: tuple[float, float, int], why: str, do: str, *, alarm: bool
) -> Finding:
    """Return the finding about another order of the same events.

    Args:
        alarm: a large gap is an alarm, and not only a notice.
    """
    gap = (n1[0] - other[0]) / n1[0] if n1[0] else 0.0
    error = ((n1[0] * (1 - n1[0]) + other[0] * (1 - other[0])) / n1[2]) ** 0.5
    deviation = abs(n1[0] - other[0]) / error if error else 0.0
    verdict = NOTICE if abs(gap) >= _GAP and deviation >= 2 else OK
    if alarm and gap >= _LARGE and deviation >= _DEVIATIONS:
        verdict = ALARM
    described = _describe(name, other, verdict, f", {-100 * gap + 0.0:+.1f} %", why, do)
    bounds = f"notice {bound(_GAP)}{f', alarm {bound(_LARGE)}' if alarm else ''}"
    return Finding(**{**vars(described), "bound": bounds, "numbers": {**described.numbers, "gap": gap}})
