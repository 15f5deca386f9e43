"""Exploration scores of candidates, by the program of the explorer in a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.exporting.inputs import EXPLORE
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.pipeline.stage_columns import StageColumns
from longrec.serve.open_model import OpenModel
from longrec.serve.rank_stage import fill_columns


class ExplorationScorer:
    """Scorer of candidates by an explorer.

    Args:
        model: the opened bundle of a ranker with an explorer.
        filled: reader of the columns of the candidates that the stages before fill. None: they are in the request.
    """

    def __init__(self, model: OpenModel, filled: StageColumns | None = None) -> None:
        assert model.bundle.manifest.explorer is not None
        self.model, self._facts, self._filled = model, model.bundle.manifest.explorer, filled
        self._program = model.programs[EXPLORE]
        _, self._output = self._program.outputs

    def contains(self, keys: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which items the bundle knows, bool ``[C]``."""
        mask: NDArray[np.bool_] = self.model.encoder.find_items(keys) > 0
        return mask

    def __call__(self, candidates: Candidates, query: Query, seed: int) -> NDArray[np.float32]:
        """Return the exploration score of every candidate, float32 ``[C]``, with the noise of a seed.

        Raises:
            RequestError: if the request does not fit the bundle.
            LongRecError: if a score is not finite.
        """
        encoder = self.model.encoder
        encoded = query.encode(encoder)
        items = encoder.encode_candidates(fill_columns(candidates, self._filled), query)
        inputs = {**encoded.inputs, **encoder.build_item_tensors(items, query.timestamp)}
        scores: NDArray[np.float32] = self._program.run(
            {**inputs, **self._facts.draw(seed, len(candidates))}, self._output
        )
        if not np.isfinite(scores).all():
            first = candidates.keys[~np.isfinite(scores)].tolist()[0]
            problem = f"an exploration score that is not finite, first for item {first!r}"
            raise LongRecError(f"explorer {self._facts.name!r}", problem, "finite scores")
        return scores
