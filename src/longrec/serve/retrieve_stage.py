"""Retrieval stage: the items of the catalog with the highest scores for a query, by exact search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.exporting.bundle import INDEX
from longrec.exporting.catalog import build_catalog_tensors
from longrec.exporting.inputs import SCORE, USERS_PROGRAM
from longrec.features.entity_table import open_array
from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.rank import select_top
from longrec.pipeline.stage import Query
from longrec.serve.open_model import OpenModel
from longrec.serve.request_encoder import EncodedQuery


class RetrieveStage:
    """Stage that adds the items with the highest scores of a retriever. Of equal scores the first items come first.

    Args:
        model: the retriever.
        at_least: number of items that are retrieved even if the query has a smaller k.
        name: name of the stage and of its scores. The source of the items is the name of the model.
    """

    def __init__(self, model: OpenModel, at_least: int = 0, name: str = "retrieve") -> None:
        self.model, self.at_least, self.name = model, at_least, name
        bundle = model.bundle
        self._encoder = model.encoder
        self._keys = bundle.items.keys.values.to_numpy(zero_copy_only=False)
        self._program = model.programs[USERS_PROGRAM if USERS_PROGRAM in model.programs else SCORE]
        self._index: NDArray[np.float32] | None = None
        if USERS_PROGRAM in model.programs:
            self._index = open_array(bundle.path / INDEX)
        else:
            self._catalog = build_catalog_tensors(bundle.fitted, bundle.items)

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Add the best items of the catalog to candidates.

        Raises:
            RequestError: if the request does not fit the bundle.
            LongRecError: if a score is not finite.
        """
        encoded = query.encode(self._encoder)
        scores = self._score_catalog(encoded)
        if not np.isfinite(scores).all():
            first = self._keys[~np.isfinite(scores)].tolist()[0]
            raise LongRecError(
                f"stage {self.name!r}", f"a score that is not finite, first for item {first!r}", "finite scores"
            )
        if query.exclude_seen:
            seen = self._encoder.read_seen_items(encoded, query.timestamp)
            scores[seen[seen > 0] - 1] = -np.inf
        best = select_top(scores, max(query.k, self.at_least))
        best = best[scores[best] > -np.inf]
        own = Candidates.of(self._keys[best], self.model.name).with_scores(self.name, scores[best])
        return merge([candidates, own]) if len(candidates) else own

    def _score_catalog(self, encoded: EncodedQuery) -> NDArray[np.float32]:
        """Return the score of every item, float32 ``[I]``, in memory of its own."""
        if self._index is None:
            return np.array(self._program.run({**encoded.inputs, **self._catalog}))
        vectors = self._program.run(encoded.inputs)
        scores: NDArray[np.float32] = self._index @ vectors[0]
        for vector in vectors[1:]:  # four products and maxima take a fourth of the time of one and its maxima by row
            np.maximum(scores, self._index @ vector, out=scores)
        return scores
