"""Retrieval stage: the items of the catalog with the highest scores for a query, of those that may be retrieved."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.exporting.inputs import SCORE, USERS_PROGRAM
from longrec.index.top import select_top
from longrec.pipeline.candidates import Candidates, merge
from longrec.pipeline.deadline import Late, is_late
from longrec.pipeline.stage import Query
from longrec.serve.encoded_query import EncodedQuery
from longrec.serve.generate import ItemGenerator
from longrec.serve.open_model import OpenModel


class RetrieveStage:
    """Stage that adds the items with the highest scores of a retriever. Of equal scores the first items come first.

    Withdrawn items, items that do not meet the condition and, if the query says so, items of earlier events of the user
    are not retrieved. There are fewer items than wanted only if no others may be retrieved.

    Args:
        model: the retriever.
        at_least: number of items that are retrieved even if the query has a smaller k.
        name: name of the stage and of its scores. The source of the items is the name of the model.
        count: number of items that are retrieved, whatever k the query has. 0: k, and ``at_least``.
        where: condition on raw columns of the items, such as ``year >= 1990``.
        exclude_seen: leave out items of earlier events of the user. None: as the query says.
        source: name of the source of the items. Default: the name of the model.
        deadline: seconds since the request began, after which a generator begins no further step and raises ``Late``.
            Its paths are complete after the last step only, so that a late search has no items.

    Raises:
        ConfigError: if the condition does not fit the items.
    """

    def __init__(
        self,
        model: OpenModel,
        at_least: int = 0,
        name: str = "retrieve",
        *,
        count: int = 0,
        where: str | None = None,
        exclude_seen: bool | None = None,
        source: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.model, self.at_least, self.name = model, at_least, name
        self.count, self.where, self.exclude_seen = count, where, exclude_seen
        self.source = model.name if source is None else source
        self._encoder, self._catalog = model.encoder, model.catalog
        self._deadline, self._fixed = deadline, _Fixed()
        self._generator = None if model.bundle.manifest.generator is None else ItemGenerator(model)
        if self._generator is None:
            self._program = model.programs[USERS_PROGRAM if USERS_PROGRAM in model.programs else SCORE]
        if where is not None:
            self._catalog.match(where, f"{name}.where")

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Add the best items of the catalog to candidates.

        Raises:
            RequestError: if the request does not fit the bundle.
            LongRecError: if a score is not finite.
            Late: if a generator has no time left.
        """
        self._catalog.refresh()
        encoded = query.encode(self._encoder)
        count = self.count or max(query.k, self.at_least)
        fixed = self._select_fixed()
        allowed = self._select_allowed(query, fixed)
        if self._generator is None:
            best, scores = self._search(encoded, count, allowed)
        else:
            best, scores = self._generator.search(encoded.inputs, count, fixed, allowed, partial(self._check, query))
        if not np.isfinite(scores).all():
            first = self._catalog.keys[best[~np.isfinite(scores)]].tolist()[0]
            raise LongRecError(
                f"stage {self.name!r}", f"a score that is not finite, first for item {first!r}", "finite scores"
            )
        own = Candidates.of(self._catalog.keys[best], self.source).with_scores(self.name, scores)
        return merge([candidates, own]) if len(candidates) else own

    def _check(self, query: Query) -> None:
        """Raise ``Late`` if the deadline is over."""
        if is_late(query, self._deadline):
            raise Late

    def _select_fixed(self) -> NDArray[np.bool_] | None:
        """Return the mask of the items that any request may retrieve, bool ``[I]``. None: all. It is not changed."""
        withdrawn = self._catalog.withdrawn
        return self._fixed.combine(None if self.where is None else self._catalog.match(self.where), withdrawn)

    def _select_allowed(self, query: Query, fixed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Return the mask of the items that a request may retrieve, bool ``[I]``. None: all."""
        catalog, allowed = self._catalog, fixed
        if query.exclude_seen if self.exclude_seen is None else self.exclude_seen:
            seen = self._encoder.read_seen_events(query)[0]
            allowed = np.ones(len(catalog), bool) if allowed is None else allowed.copy()
            allowed[seen[(seen > 0) & (seen <= len(catalog))] - 1] = False
        if query.eligible is not None:
            eligible = query.eligible(catalog.keys)
            allowed = eligible if allowed is None else allowed & eligible
        return allowed

    def _search(
        self, encoded: EncodedQuery, count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items and their scores, best first."""
        index = self._catalog.index
        if index is not None:
            return index.search(self._program.run(encoded.inputs), count, allowed)
        scores = self._program.run({**encoded.inputs, **self._catalog.tensors})
        if not np.isfinite(scores).all():
            best = np.flatnonzero(~np.isfinite(scores))
            return best, scores[best]
        if allowed is None:
            best = select_top(scores, count)
            return best, scores[best]
        some = np.flatnonzero(allowed)
        best = some[select_top(scores[some], count)]
        return best, scores[best]


class _Fixed:
    """Mask of the items that meet a condition and are not withdrawn. The last one is returned again."""

    def __init__(self) -> None:
        self._recent: tuple[tuple[NDArray[np.bool_] | None, ...], NDArray[np.bool_] | None] = (None, None), None

    def combine(self, met: NDArray[np.bool_] | None, withdrawn: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Return ``met & ~withdrawn``, each None for all."""
        if any(one is not other for one, other in zip(self._recent[0], (met, withdrawn))):
            shown = None if withdrawn is None else ~withdrawn
            both = met & shown if met is not None and shown is not None else met if shown is None else shown
            self._recent = (met, withdrawn), both
        return self._recent[1]
