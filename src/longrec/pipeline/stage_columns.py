"""Columns that the stages of a pipeline fill for its candidates: scores, ranks and sources, by fixed names.

    score_STAGE   score of a stage, as in score_recall_sasrec, score_merge, score_prerank; null for an item without it
    rank_SOURCE   rank of the item in the list of a source, from 1; null for an item that it did not retrieve
    source        names of the sources that retrieved the item, joined with +

A ranker whose schema has them as features of side ``candidate`` reads them behind these stages. The log of impressions
and ``longrec candidates`` write the same names, so that a ranker is trained on what it will read.

Shapes: C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.trace import SOURCE

ORIGINS = "source"
"""Column of the sources of a candidate."""
MERGE, PRERANK, RANK, EXPLORE = "merge", "prerank", "rank", "explore"
_SCORE, _RANK = "score_", "rank_"


def name_score_column(stage: str) -> str:
    """Return the column of the scores of a stage.

    >>> name_score_column("recall.sasrec")
    'score_recall_sasrec'
    """
    return f"{_SCORE}{stage.replace('.', '_')}"


def name_rank_column(source: str) -> str:
    """Return the column of the ranks in the list of a source.

    >>> name_rank_column("sasrec")
    'rank_sasrec'
    """
    return f"{_RANK}{source}"


def list_rerank_names(config: PipelineConfig) -> list[str]:
    """Return the names of the stages of re-ranking: ``rerank.mmr``, ``rerank.mmr.2``."""
    names = list[str]()
    for one in config.rerank:
        name, same = f"rerank.{one.method}", sum(other.startswith(f"rerank.{one.method}") for other in names)
        names.append(f"{name}.{same + 1}" if same else name)
    return names


def list_score_names(config: PipelineConfig) -> list[str]:
    """Return the names of the stages that score items, in order."""
    merged = [MERGE] if len(config.recall) > 1 else []
    rankers = [name for name, own in ((PRERANK, config.prerank), (RANK, config.rank)) if own is not None]
    rerankers = [name for name, one in zip(list_rerank_names(config), config.rerank) if one.method == "model"]
    explorers = [] if config.explore is None else [EXPLORE]
    return [*(f"{SOURCE}{name}" for name in config.recall), *merged, *rankers, *rerankers, *explorers]


def list_stage_columns(config: PipelineConfig, before: str) -> dict[str, str]:
    """Return the columns that the stages before a stage fill, each with the stage or the source that it is of.

    Args:
        before: ``prerank``, ``rank``, the name of a stage of re-ranking, or ``explore``.
    """
    order = [*(f"{SOURCE}{name}" for name in config.recall), MERGE, PRERANK, RANK, *list_rerank_names(config), EXPLORE]
    earlier = order[: order.index(before)]
    scored = [stage for stage in list_score_names(config) if stage in earlier]
    return {
        ORIGINS: "",
        **{name_score_column(stage): stage for stage in scored},
        **{name_rank_column(source): source for source in config.recall},
    }


class StageColumns:
    """Reader of the columns of candidates behind some stages.

    Args:
        columns: the stage or the source of each column, see ``list_stage_columns``.
        wanted: names of the columns to read. Default all.
    """

    def __init__(self, columns: dict[str, str], wanted: Iterable[str] | None = None) -> None:
        names = list(columns if wanted is None else wanted)
        self.names: Sequence[str] = names
        self._scores = {name: columns[name] for name in names if name.startswith(_SCORE)}
        self._ranks = {name: columns[name] for name in names if name.startswith(_RANK)}

    def read(self, candidates: Candidates) -> dict[str, pa.Array]:
        """Return the columns, ``[C]`` each: float32 scores, int32 ranks, text. Null where there is no value."""
        count = len(candidates)
        columns: dict[str, pa.Array] = {}
        for name in self.names:
            if name in self._scores:
                scores = candidates.scores.get(self._scores[name])
                columns[name] = _read_scores(scores, count)
            elif name in self._ranks:
                ranks = candidates.ranks.get(self._ranks[name])
                columns[name] = pa.nulls(count, pa.int32()) if ranks is None else pa.array(ranks, mask=ranks == 0)
            else:
                columns[name] = pa.array(candidates.list_origins(), pa.string())
        return columns

    def fill(self, candidates: Candidates) -> Candidates:
        """Return candidates with these columns in place of those of the request, in a form that is encoded fast.

        Numbers are float64, NaN for null, and the sources a dictionary. Encoders read them as the columns of ``read``.
        """
        columns: dict[str, pa.Array | None] = dict.fromkeys(self.names)
        for name in self.names:
            if name in self._scores:
                scores = candidates.scores.get(self._scores[name])
                if scores is not None:
                    columns[name] = pa.array(scores.astype(np.float64))
            elif name in self._ranks:
                ranks = candidates.ranks.get(self._ranks[name])
                if ranks is not None:
                    columns[name] = pa.array(np.where(ranks == 0, np.nan, ranks))
            else:
                names, indices = candidates.number_origins()
                columns[name] = pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(names, pa.string()))
        return replace(candidates, columns=columns)


def _read_scores(scores: NDArray[np.float32] | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.float32()) if scores is None else pa.array(scores, mask=np.isnan(scores))
