"""Lists of every stage of a pipeline for requests of a log, with their CPU times, and lists of floors.

A request is answered in this process, as a server does, at the timestamp of its row, so that every history, feature and
cap reads strictly earlier events alone. Besides the stages, each candidate source is run alone at the budget of the
merged list, so that sources and their union are compared at equal lengths.

Shapes: L requests, N listed items.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.catalog import count_items
from longrec.data.log import Log
from longrec.errors import ConfigError
from longrec.evaluation.existing import ExistingItems, ItemRows
from longrec.evaluation.requests import Contexts, Requests
from longrec.exporting.inputs import USERS_PROGRAM
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.stage import Query, Stages
from longrec.pipeline.stage_columns import EXPLORE
from longrec.pipeline.trace import SOURCE, Trace
from longrec.progress import Progress
from longrec.serve.item_attributes import ItemVectors
from longrec.serve.open_model import OpenModel
from longrec.serve.pipelines import RECOMMEND
from longrec.serve.retrieve_stage import RetrieveStage
from longrec.serve.service import Service
from longrec.training.list_metrics import Lists

ALONE, FLOOR = "alone.", "floor."
"""Prefixes of the names of lists of one source at the budget of the merged list, and of lists without a model."""


@dataclass
class StageLists:
    """Lists of one stage.

    Attributes:
        items: one int32 array per request, rows of the item table, best first, 0 for an item that the log lacks.
        seconds: CPU time per request. Empty for lists that cost nothing, such as floors.
        late: number of requests whose deadline left the stage out.
    """

    items: list[NDArray[np.int32]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    late: int = 0

    def collect(self) -> Lists:
        """Return the lists without items that the log lacks."""
        sizes = [len(one) for one in self.items]
        item = np.concatenate([*self.items, np.zeros(0, np.int32)]).astype(np.int64)
        group = np.repeat(np.arange(len(sizes)), sizes)
        return Lists(item[item > 0], group[item > 0], len(sizes))


def compute_budget(config: PipelineConfig) -> int:
    """Return the number of items that the sources pass on together."""
    total = sum(source.count for source in config.recall.values())
    return total if config.merge.count is None else min(total, config.merge.count)


def list_stages(
    service: Service,
    requests: Requests,
    contexts: Contexts,
    existing: ExistingItems,
    k: int,
    progress: Progress | None = None,
) -> dict[str, StageLists]:
    """Run a pipeline on requests, and return the lists by the name of the stage, sources alone behind the sources.

    Raises:
        RequestError: a request that the bundles cannot answer.
    """
    assert service.pipeline is not None
    log, config = requests.log, service.pipeline.config
    # Explored pages are the ranker's with noise, and are measured by their log.
    plain = [stage for stage in service.get_stages(RECOMMEND).stages if stage.name != EXPLORE]
    stages, alone = Stages(plain), _build_sources_alone(service, k)
    lists: dict[str, StageLists] = {}
    bounds = np.searchsorted(requests.owner, np.arange(len(requests) + 1))

    def answer(number: int) -> Query:
        row = int(requests.rows[number])
        timestamp = int(log.timestamps[row])
        query = Query(
            log.users.key(int(log.user(np.array([row]))[0])),
            timestamp,
            contexts.read(row),
            allow_unknown=True,
            k=k,
            exclude_seen=config.filter.seen,
            further_context=frozenset(contexts.columns),
            trace=Trace(reasons=False),
            eligible=existing.at(timestamp, requests.relevant[bounds[number] : bounds[number + 1]]),
        )
        stages(Candidates.of([], "request"), query)
        return query

    answer(0)  # what stages build once is no time of a request
    for number in range(len(requests)):
        query = answer(number)
        assert query.trace is not None
        for stage in query.trace.stages:
            _append(lists, stage.name, existing.rows, stage.own.keys, stage.cpu_seconds)
            lists[stage.name].late += stage.late
            name = stage.name.removeprefix(SOURCE)
            if stage.is_source and name in alone:
                began = time.process_time()
                own = alone[name](Candidates.of([], name), replace(query, trace=None))
                _append(lists, f"{ALONE}{name}", existing.rows, own.keys, time.process_time() - began)
        if progress is not None:
            progress.advance(1)
    sources = [name for name in lists if name.startswith(SOURCE)]
    first = [*sources, *(name for name in lists if name.startswith(ALONE))]
    return {name: lists[name] for name in [*first, *(other for other in lists if other not in first)]}


def _append(lists: dict[str, StageLists], name: str, rows: ItemRows, keys: NDArray[Any], seconds: float) -> None:
    own = lists.setdefault(name, StageLists())
    own.items.append(rows.find(keys).astype(np.int32))
    own.seconds.append(seconds)


def _build_sources_alone(service: Service, k: int) -> dict[str, RetrieveStage]:
    """Return a stage per source that retrieves the budget of the merged list. Empty for a single source."""
    assert service.pipeline is not None
    config, models = service.pipeline.config, service.pipeline.models
    if len(config.recall) < 2:
        return {}
    budget = max(compute_budget(config), k)
    return {
        name: RetrieveStage(
            models[f"recall.{name}.bundle"],
            name=f"{SOURCE}{name}",
            count=budget,
            where=config.filter.where,
            source=name,
        )
        for name in config.recall
    }


def find_allowed(service: Service, log: Log, rows: ItemRows) -> NDArray[np.bool_]:
    """Return the items of the log that the sources may retrieve by ``filter.where``, and that are not withdrawn.

    Returns:
        bool ``[I]`` by row of the item table.
    """
    assert service.pipeline is not None
    config, allowed = service.pipeline.config, np.zeros(len(log.items), bool)
    for name in config.recall:
        catalog = service.pipeline.models[f"recall.{name}.bundle"].catalog
        mask = np.ones(len(catalog), bool) if catalog.withdrawn is None else ~catalog.withdrawn
        if config.filter.where is not None:
            mask = mask & catalog.match(config.filter.where)
        allowed[rows.of_catalog(catalog.keys)[mask]] = True
    return allowed


def list_floors(
    requests: Requests, existing: ExistingItems, allowed: NDArray[np.bool_], budget: int, seen: bool, seed: int
) -> dict[str, StageLists]:
    """Return lists without a model: the most popular items of the training rows, and random ones.

    Args:
        seen: leave out the items of the user's earlier events, as the pipeline does.
        allowed: bool ``[I]``, items that the filter of the pipeline lets through, see ``find_allowed``.
    """
    log = requests.log
    train = log.rows_of("train")
    counts = count_items(log, train[log.labels.take(train) > 0.5])
    popular, random = np.argsort(-counts, kind="stable"), np.random.default_rng(seed)
    lists = {f"{FLOOR}popularity": StageLists(), f"{FLOOR}random": StageLists()}
    bounds = np.searchsorted(requests.owner, np.arange(len(requests) + 1))
    for number, row in enumerate(requests.rows.tolist()):
        relevant = requests.relevant[bounds[number] : bounds[number + 1]]
        mask = allowed & existing.mask(int(log.timestamps[row]), relevant, len(log.items))
        if seen:
            mask[_list_seen(log, row)] = False
        lists[f"{FLOOR}popularity"].items.append(popular[mask[popular]][:budget].astype(np.int32))
        chosen = np.flatnonzero(mask)
        drawn = random.permutation(chosen)[:budget] if len(chosen) else chosen
        lists[f"{FLOOR}random"].items.append(drawn.astype(np.int32))
    return lists


def _list_seen(log: Log, row: int) -> NDArray[np.int64]:
    """Return the items of the user's events strictly before the timestamp of a row."""
    user, timestamp = int(log.user(np.array([row]))[0]), log.timestamps[row]
    own = slice(int(log.events.offsets[user]), int(log.events.offsets[user + 1]))
    visible = np.asarray(log.events.times[own]) < timestamp
    if log.available is not None:
        visible &= log.available[own] < timestamp
    items: NDArray[np.int64] = np.asarray(log.events.columns["item"][own])[visible].astype(np.int64)
    return items


def read_vectors(
    models: Mapping[str, OpenModel], log: Log, source: str | None
) -> tuple[str, NDArray[np.float32]] | None:
    """Return the vectors of the items of the log by a source, float32 ``[I, D]``, with its name. None without any.

    Args:
        models: the sources by name.
        source: name of the source. None: the first with vectors.

    Raises:
        ConfigError: a source that does not exist, or has no vectors.
    """
    names = [name for name, model in models.items() if USERS_PROGRAM in model.programs]
    if source is not None and source not in names:
        fault = f"no source in recall named {source!r}" if source not in models else f"{source} has no vectors"
        raise ConfigError("vectors", [f"{fault}; sources with vectors: {', '.join(names) or 'none'}"])
    if not names:
        return None
    chosen = names[0] if source is None else source
    vectors = ItemVectors(models[chosen]).read(log.items.keys.values.to_numpy(zero_copy_only=False))
    return chosen, np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors])
