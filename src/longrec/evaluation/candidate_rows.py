"""Candidates of a pipeline for requests of a log: what its ranker will see, as rows to train it on.

A request is answered in this process, at the timestamp of its row, by the stages before the ranker. Every history,
feature and cap reads strictly earlier events alone. Deadlines do not apply, because they depend on the machine.

Shapes: C candidates of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.evaluation.existing import ExistingItems
from longrec.evaluation.requests import Requests
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query, Stages
from longrec.pipeline.stage_columns import RANK, StageColumns, list_stage_columns
from longrec.serve.pipelines import RECOMMEND
from longrec.serve.service import Service


@dataclass(frozen=True)
class RequestCandidates:
    """Candidates of one request, in the order of the last stage.

    Attributes:
        keys: ``[C]``, keys of the items.
        hit: bool ``[C]``, True for the item of the request.
        weight: float32 ``[C]``: 1, and of sampled negatives the number that each stands for.
        columns: columns of the stages, ``[C]`` each.
    """

    keys: NDArray[Any]
    hit: NDArray[np.bool_]
    weight: NDArray[np.float32]
    columns: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.keys)


class CandidateSource:
    """The stages of a pipeline before a ranker.

    Args:
        service: the opened pipeline, which ends before the ranker.
        requests: the requests.
        existing: which items existed at a timestamp.
        before: ``rank`` or ``prerank``.
    """

    def __init__(self, service: Service, requests: Requests, existing: ExistingItems, before: str = RANK) -> None:
        assert service.pipeline is not None
        self._config = config = service.pipeline.config
        self._requests, self._existing = requests, existing
        *stages, _ = service.get_stages(RECOMMEND).stages  # the last one cuts to k
        self.stages = Stages(stages)
        self.columns = StageColumns(list_stage_columns(config, before))

    def answer(self, number: int, context: Mapping[str, Any]) -> Candidates:
        """Return the candidates of a request, in the order of the last stage.

        Args:
            context: raw values of the columns of the context.

        Raises:
            RequestError: a request that the bundles cannot answer.
        """
        log, row = self._requests.log, int(self._requests.rows[number])
        timestamp = int(log.timestamps[row])
        query = Query(
            log.users.key(int(log.user(np.array([row]))[0])),
            timestamp,
            context,
            allow_unknown=True,
            k=1,  # every stage keeps as many as its count says
            exclude_seen=self._config.filter.seen,
            further_context=frozenset(context),
            # The item of the request is no exception: a server does not know it either.
            eligible=self._existing.at(timestamp, np.zeros(0, np.int64)),
            began=np.inf,
        )
        return self.stages(Candidates.of([], "request"), query).candidates

    def collect(self, number: int, context: Mapping[str, Any], negatives: int | None, seed: int) -> RequestCandidates:
        """Return the candidates of a request with labels, in the order of the last stage.

        Args:
            context: raw values of the columns of the context.
            negatives: number of candidates without a hit to keep, drawn at random. None for all.
            seed: seed of the draw, together with the row of the request.
        """
        candidates = self.answer(number, context)
        row = int(self._requests.rows[number])
        target = self._requests.log.items.key(int(self._requests.relevant[number]))
        hit = np.array([key == target for key in candidates.keys.tolist()], bool)
        weight = np.ones(len(candidates), np.float32)
        others = np.flatnonzero(~hit)
        if negatives is not None and negatives < len(others):
            drawn = np.random.default_rng((seed, row)).choice(others, negatives, replace=False)
            weight[drawn] = len(others) / negatives
            kept = np.sort(np.concatenate([drawn, np.flatnonzero(hit)]))
            candidates, hit, weight = candidates.take(kept), hit[kept], weight[kept]
        return RequestCandidates(candidates.keys, hit, weight, self.columns.read(candidates))


def build_table(
    own: Sequence[RequestCandidates], raw: pa.Table, numbers: NDArray[np.int64], keys: Mapping[str, pa.Array]
) -> pa.Table:
    """Return the rows of some requests.

    Args:
        own: candidates of each request.
        raw: raw columns of these requests, one row each.
        numbers: number of each request, which identifies it.
        keys: column of the user with a value per request, and the type of the column of the item with no value.
    """
    owner = np.repeat(np.arange(len(own)), [len(one) for one in own])
    (user, users), (item, empty) = keys.items()
    listed = pa.concat_arrays([pa.array(one.keys.tolist(), empty.type) for one in own])
    columns: dict[str, Any] = {
        "request": pa.array(numbers[owner]).cast(pa.string()),
        user: users.take(pa.array(owner)),
        item: listed,
        **{name: raw[name].combine_chunks().take(pa.array(owner)) for name in raw.column_names},
        "candidate": pa.array(np.ones(len(owner), np.int8)),
        "relevant": pa.array(np.concatenate([one.hit for one in own]).astype(np.int8)),
        "weight": pa.array(np.concatenate([one.weight for one in own])),
    }
    for name in own[0].columns:
        columns[name] = pa.concat_arrays([one.columns[name] for one in own])
    return pa.table(columns)
