"""Ranking stage: scores candidates with the ranker of one bundle and sorts them, best first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.inputs import SCORE
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.rank import rank
from longrec.pipeline.stage import Query
from longrec.serve.open_model import OpenModel
from longrec.serve.request_encoder import EncodedCandidates, EncodedQuery

_CHUNK_POSITIONS, _CHUNK_CANDIDATES = 10_000, 256
"""Largest number of pairs of candidate and past event, and of candidates, scored at once, to fit the CPU cache."""


class RankStage:
    """Stage that scores candidates with a ranker and sorts them, highest first. Equal scores keep their order.

    Args:
        model: the ranker.
        drop_unknown: drop items that the ranker does not know, of candidates that another model retrieved.
        name: name of the stage and of its scores.
    """

    def __init__(self, model: OpenModel, drop_unknown: bool = False, name: str = "rank") -> None:
        self.model, self.drop_unknown, self.name = model, drop_unknown, name
        self._program, self._encoder = model.programs[SCORE], model.encoder

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Score and sort candidates.

        Raises:
            RequestError: if the request does not fit the bundle. Then no candidate is scored.
            LongRecError: if a score is not finite.
        """
        self.model.catalog.refresh()
        encoded = query.encode(self._encoder)
        if self.drop_unknown:
            candidates = candidates.take(np.flatnonzero(self._encoder.find_items(candidates.keys)))
        items = self._encoder.encode_candidates(candidates, query)
        return rank(candidates, self._score(encoded, items, query.timestamp), self.name)

    def _score(self, encoded: EncodedQuery, items: EncodedCandidates, timestamp: int) -> NDArray[np.float32]:
        count = len(items.rows)
        step = max(1, min(_CHUNK_CANDIDATES, _CHUNK_POSITIONS // max(encoded.positions, 1)))
        scores = [np.zeros(0, np.float32)] if not count else []
        # Rows are independent, so that chunks change no score.
        for start in range(0, count, step):
            some = items if step >= count else items.slice(slice(start, start + step))
            inputs = {**encoded.inputs, **self._encoder.build_item_tensors(some, timestamp)}
            scores.append(self._program.run(inputs))
        return scores[0] if len(scores) == 1 else np.concatenate(scores)
