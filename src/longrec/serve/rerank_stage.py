"""Re-ranking stage: scores a whole list with the re-ranker of one bundle and sorts it, best first."""

from __future__ import annotations

import numpy as np

from longrec.exporting.inputs import SCORE
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.deadline import cut
from longrec.pipeline.rank import rank
from longrec.pipeline.stage import Query
from longrec.pipeline.stage_columns import StageColumns
from longrec.serve.open_model import OpenModel
from longrec.serve.rank_stage import drop_unknown_items, fill_columns


class RerankStage:
    """Stage that orders a list again with a re-ranker, highest probability first. Equal ones keep their order.

    The list is scored in one run of the program, because its items see each other. Their order before this stage does
    not matter: the program computes the initial list of the re-ranker's own base. The scores are probabilities over the
    list, which sum up to 1.

    Args:
        model: the re-ranker.
        drop_unknown: drop items that the re-ranker does not know, of candidates that another model retrieved.
        name: name of the stage and of its scores.
        count: number of items that it keeps, or k if that is more. None for all.
        filled: reader of the columns of the candidates that the stages before fill. None: they are in the request.
    """

    def __init__(
        self,
        model: OpenModel,
        drop_unknown: bool = False,
        name: str = "rerank",
        *,
        count: int | None = None,
        filled: StageColumns | None = None,
    ) -> None:
        self.model, self.drop_unknown, self.name, self.count = model, drop_unknown, name, count
        self._filled = filled
        self._program, self._encoder = model.programs[SCORE], model.encoder

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Score and sort candidates.

        Raises:
            RequestError: if the request does not fit the bundle. Then no candidate is scored.
            LongRecError: if a score is not finite.
        """
        if not len(candidates):
            return candidates.with_scores(self.name, np.zeros(0, np.float32))
        encoded = query.encode(self._encoder)
        if self.drop_unknown:
            candidates = drop_unknown_items(candidates, self._encoder, query)
        items = self._encoder.encode_candidates(fill_columns(candidates, self._filled), query)
        scores = np.zeros(0, np.float32)
        if len(candidates):
            inputs = {**encoded.inputs, **self._encoder.build_item_tensors(items, query.timestamp)}
            scores = self._program.run(inputs)
        return cut(rank(candidates, scores, self.name), self.count, query)
