"""Ranking stage: scores candidates with the ranker of one bundle and sorts them, best first."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from longrec.errors import RequestError
from longrec.exporting.inputs import SCORE, TASK_OUTPUT
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.deadline import Late, cut, is_late
from longrec.pipeline.formula import Formula
from longrec.pipeline.rank import rank
from longrec.pipeline.stage import Query, SlicedStage
from longrec.pipeline.stage_columns import StageColumns
from longrec.pipeline.trace import UNKNOWN
from longrec.serve.encoded_query import EncodedCandidates, EncodedQuery
from longrec.serve.open_model import OpenModel
from longrec.serve.request_encoder import RequestEncoder

_CHUNK_POSITIONS, _CHUNK_CANDIDATES = 10_000, 256
"""Largest number of pairs of candidate and past event, and of candidates, scored at once, to fit the CPU cache."""


class RankStage(SlicedStage):
    """Stage that scores candidates with a ranker and sorts them, highest first. Equal scores keep their order.

    Args:
        model: the ranker.
        drop_unknown: drop items that the ranker does not know, of candidates that another model retrieved.
        name: name of the stage and of its scores.
        keep: number of items that it keeps, or k if that is more. None for all.
        formula: formula of the score over the outputs of the ranker. Default the ranker's own score.
        deadline: seconds since the request began, after which it scores no further candidates and raises ``Late``.
        filled: reader of the columns of the candidates that the stages before fill. None: they are in the request.
    """

    def __init__(
        self,
        model: OpenModel,
        drop_unknown: bool = False,
        name: str = "rank",
        *,
        keep: int | None = None,
        formula: Formula | None = None,
        deadline: float | None = None,
        filled: StageColumns | None = None,
    ) -> None:
        self.model, self.drop_unknown, self.name = model, drop_unknown, name
        self.keep, self._formula, self._deadline, self._filled = keep, formula, deadline, filled
        self._program, self._encoder = model.programs[SCORE], model.encoder
        names = list_formula_names(self._program.outputs)
        read = () if formula is None else formula.names
        self._outputs = [names[one] for one in read] or [self._program.outputs[0]]

    def run_in_slices(self, candidates: Candidates, query: Query) -> Iterator[Candidates | None]:
        """Score and sort candidates. Yields None after every slice but the last, and in the end the candidates.

        Raises:
            RequestError: if the request does not fit the bundle. Then no candidate is scored.
            LongRecError: if a score is not finite.
        """
        self.model.catalog.refresh()
        encoded = query.encode(self._encoder)
        if self.drop_unknown and len(candidates):
            candidates = drop_unknown_items(candidates, self._encoder, query)
        if not len(candidates):
            yield candidates.with_scores(self.name, np.zeros(0, np.float32))
            return
        scores, noted = None, len(query.unknown.items)
        while scores is None:  # again if the items have changed between two slices, so that an answer has one state
            del query.unknown.items[noted:]
            items = self._encoder.encode_candidates(fill_columns(candidates, self._filled), query)
            scores = yield from self._score(encoded, items, query)
        yield cut(rank(candidates, scores, self.name), self.keep, query)

    def _score(
        self, encoded: EncodedQuery, items: EncodedCandidates, query: Query
    ) -> Generator[None, None, NDArray[np.float32] | None]:
        """Return the scores. Yields between two slices, and returns None if items have changed there."""
        count, revision = len(items.rows), self._encoder.revision
        step = _CHUNK_CANDIDATES
        if self.model.bundle.manifest.events_per_candidate:
            step = max(1, min(step, _CHUNK_POSITIONS // max(encoded.positions, 1)))
        chunks = []
        # Rows are independent, so that chunks change no score.
        for start in range(0, count, step):
            if start:
                if is_late(query, self._deadline):
                    raise Late
                yield
                if self._encoder.revision != revision:
                    return None
            some = items if step >= count else items.slice(slice(start, start + step))
            inputs = {**encoded.inputs, **self._encoder.build_item_tensors(some, query.timestamp)}
            chunks.append(self._program.run_outputs(inputs, self._outputs))
        outputs = [own[0] if len(own) == 1 else np.concatenate(own) for own in zip(*chunks)]
        if self._formula is None:
            scores: NDArray[np.float32] = outputs[0]
            return scores
        scores = self._formula(dict(zip(self._formula.names, outputs)), count)
        if not np.isfinite(scores).all():
            do = "add a small number to a divisor, or leave out a negative power"
            raise RequestError(f"{self.name}.score", f"{self._formula.text!r} is not finite", "finite scores", do, 500)
        return scores


def fill_columns(candidates: Candidates, filled: StageColumns | None) -> Candidates:
    """Return candidates with the columns that the stages before fill, in place of those of the request."""
    return candidates if filled is None or not filled.names else filled.fill(candidates)


def drop_unknown_items(candidates: Candidates, encoder: RequestEncoder, query: Query) -> Candidates:
    """Return the candidates that a bundle knows."""
    rows = encoder.find_items(candidates.keys)
    if rows.all():
        return candidates
    if query.trace is not None:
        query.trace.drop(candidates.keys[rows == 0], UNKNOWN)
    return candidates.take(np.flatnonzero(rows))


def list_formula_names(outputs: Iterable[str]) -> dict[str, str]:
    """Return the names that a formula can read, each with its output: ``score``, ``label`` and the other tasks.

    The only output of a ranker of one task is both ``score`` and ``label``.
    """
    listed = list(outputs)
    names = {
        "score": listed[0],
        **{one.removeprefix(TASK_OUTPUT): one for one in listed if one.startswith(TASK_OUTPUT)},
    }
    names.setdefault("label", listed[0])
    return names
