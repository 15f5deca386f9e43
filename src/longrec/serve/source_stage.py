"""Stage of a candidate source: adds the items that a retriever retrieves to the candidates of other sources."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.stage import Query, Stage
from longrec.pipeline.trace import DUPLICATE, FILTER, SEEN, SOURCE


class SourceStage:
    """Stage that adds the items of one candidate source.

    Args:
        source: name of the source.
        retrieve: stage that retrieves items into an empty list, with scores of the name ``recall.SOURCE``.
        unfiltered: the same without the filter of the pipeline, for a trace. None if there is no filter.
    """

    def __init__(self, source: str, retrieve: Stage, unfiltered: Stage | None = None) -> None:
        self.source, self.name = source, f"{SOURCE}{source}"
        self._retrieve, self._unfiltered = retrieve, unfiltered

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Add the items of the source. An item that is a candidate already keeps its position."""
        own = self._run(self._retrieve, query).with_ranks(self.source)
        if query.trace is not None and query.trace.reasons:
            began = time.perf_counter()
            self._trace_dropped(own, candidates, query)
            query.trace.note_extra(time.perf_counter() - began)
        return merge([candidates, own]) if len(candidates) else own

    def _run(self, stage: Stage, query: Query) -> Candidates:
        return stage(Candidates.of([], self.source), query)

    def _trace_dropped(self, own: Candidates, candidates: Candidates, query: Query) -> None:
        """Trace the items that would have been retrieved without a filter, and those that are candidates already."""
        assert query.trace is not None
        stage = self._unfiltered or self._retrieve
        plain = replace(query, trace=None, began=math.inf)  # a trace is never late
        unseen = own if self._unfiltered is None else self._run(stage, plain)
        if query.exclude_seen:
            every = self._run(stage, replace(plain, exclude_seen=False))
            query.trace.drop(every.keys[~np.isin(every.keys, unseen.keys)], SEEN)
        query.trace.drop(unseen.keys[~np.isin(unseen.keys, own.keys)], FILTER)
        query.trace.drop(own.keys[np.isin(own.keys, candidates.keys)], DUPLICATE)
