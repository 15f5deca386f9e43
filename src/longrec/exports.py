"""Export of runs, and of the source models of token stores, as serving bundles."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from longrec.data.item_columns import read_item_columns
from longrec.data.requests import build_impression
from longrec.errors import ConfigError, DataError, RunError
from longrec.exploration.choice import WHERE, RunsSettings, build_explorer, read_explorer
from longrec.exploration.explorer import Explorer
from longrec.exploration.gate import Gate, fit_gate
from longrec.exporting.bundle import EncoderFacts, Manifest
from longrec.exporting.golden import GoldenRequest, Sample
from longrec.exporting.list_program import select_apart
from longrec.exporting.offline import (
    build_golden_exploration,
    build_golden_list,
    build_golden_request,
    build_golden_retrieval,
    build_golden_tokens,
    build_list_batch,
    build_request_batch,
)
from longrec.exporting.scale import Scale
from longrec.exporting.write import CatalogOptions, ExternalStores
from longrec.exporting.write import export as write
from longrec.features.entity_versions import find_first_from
from longrec.features.fields import AVAILABLE
from longrec.index.build import IndexSettings
from longrec.models.core.kinds import Ranker, Reranker, Retriever, VectorRetriever
from longrec.models.core.registry import name_of
from longrec.serve import online_source, service
from longrec.training.finished_run import open_run
from longrec.training.loaders import build_loader
from longrec.training.token_source import open_source

if TYPE_CHECKING:
    from longrec.data.log import Log
    from longrec.models.core.base import Model
    from longrec.training.finished_run import Run


_RETRIEVED = 20
"""Number of items of a golden request to a retriever."""


_GATE_BATCH = 4_096
"""Rows of a batch that the gate of an explorer is fitted to."""
_MEASURED = 400
"""Number of requests with which the recall of an approximate index is measured."""


def export_run(
    run: Run,
    out: Path,
    overwrite: bool,
    index: IndexSettings | None = None,
    states: bool = False,
    explore: Mapping[str, Any] | None = None,
) -> Manifest:
    """Export a run as a bundle, and verify that its whole online path returns the scores of the run.

    Args:
        index: settings of the index of a vector retriever.
        states: write the programs of states of users.
        explore: name and settings of an explorer whose program is also written, see ``exploration/choice.py``.

    Raises:
        ConfigError: if a setting of the explorer has a fault, or the model cannot explore this way.
        RunError: if the run is one of a source model of tokens. Its tokens are exported instead.
        BundleError: if the folder exists, the model cannot be traced, or scores differ.
    """
    log, model = run.log(), run.model()
    if not isinstance(model, Ranker | Reranker | Retriever):
        raise RunError(
            str(run.folder),
            f"a token source ({run.config.model['name']}), whose tokens are written by later weights",
            "a ranker, or the tokens of a token source",
            f"compress first: longrec compress {run.folder} --into tokens/v1, then longrec export tokens/v1 {out}",
        )
    explorer = None if explore is None else _build_explorer(run, log, model, explore)
    golden = _build_golden_requests(log, model, explorer)
    source = {"run": run.name, "config": run.config.to_yaml()}
    external_stores = ExternalStores(
        {name: history.store for name, history in log.tokens.items()},
        {name: feature.store for name, feature in log.knowledge.items()},
    )
    return write(
        model,
        log.folder,
        out,
        golden,
        service.replay,
        fitted=log.fitted,
        source=source,
        overwrite=overwrite,
        external_stores=external_stores,
        catalog=CatalogOptions(
            _read_item_columns(run, log),
            index or IndexSettings(),
            partial(_compute_queries, log, model) if isinstance(model, VectorRetriever) else None,
        ),
        states=states,
        explorer=explorer,
    )


def _build_explorer(run: Run, log: Log, model: Model, explore: Mapping[str, Any]) -> Explorer:
    """Return the explorer of a run. Its gate is fitted to the training rows, as the model was.

    Raises:
        ConfigError: if a setting has a fault, the model cannot explore this way, or a further run has another schema.
    """
    settings, name = read_explorer(explore), run.config.model["name"]
    if not isinstance(model, Ranker):
        raise ConfigError(WHERE, [f"model: {name} is no ranker, and explorers rank candidates of one; export a ranker"])
    members: list[Ranker] = []
    for folder in settings.runs if isinstance(settings, RunsSettings) else ():
        other = open_run(folder).model()
        if not isinstance(other, Ranker) or other.fields != model.fields:
            raise ConfigError(WHERE, [f"runs: {folder} is no ranker of the schema of {run.name}; train it on the same"])
        members.append(other)

    def fit(task: str) -> Gate:
        loader = build_loader(model, log, log.rows_of("train"), _GATE_BATCH)
        return fit_gate(model, loader.epoch(0), task=task)

    return build_explorer(settings, model, fit, members)


def _read_item_columns(run: Run, log: Log) -> pa.Table | None:
    """Return the raw columns of the items of a run, or None with a warning if their table can no longer be read."""
    try:
        return read_item_columns(run.config.data, log.schema, log.items.keys)
    except DataError as error:
        print(
            f"warning: no raw columns of items ({error.where}: {error.found}), so that the bundle takes no conditions "
            "on them",
            file=sys.stderr,
        )
        return None


def _compute_queries(log: Log, model: VectorRetriever) -> NDArray[np.float32]:
    """Return the vectors of requests at rows of the log, float32 ``[R, K, D]``."""
    vectors = []
    for row in _choose_golden_rows(log, _MEASURED).tolist():
        sample = Sample(**build_impression(log, row, []))
        with torch.no_grad():
            vectors.append(model.users(build_request_batch(log.fitted, log.users, log.items, sample)).numpy())
    return np.concatenate(vectors)


def export_source(folder: Path, out: Path, overwrite: bool) -> Manifest:
    """Export the source model of tokens as a bundle, and verify that it encodes rows of its log to the same tokens."""
    source = open_source(folder)
    log, scale = source.log, Scale(source.mean, source.std)
    others, rows = sort_items_by_popularity(log)[:10], _choose_golden_rows(log)
    samples = [Sample(**build_impression(log, int(row), others)) for row in rows]
    golden = [build_golden_tokens(source.model, log.fitted, log.users, log.items, sample, scale) for sample in samples]
    return write(
        source.model,
        log.folder,
        out,
        golden,
        online_source.replay,
        fitted=log.fitted,
        name=name_of(source.model),
        source={"run": source.run, "version": source.version},
        overwrite=overwrite,
        external_stores=ExternalStores(
            {name: history.store for name, history in log.tokens.items()},
            {name: feature.store for name, feature in log.knowledge.items()},
        ),
        encoder=EncoderFacts(source.version, scale, source.model.width, source.model.slots),
    )


def build_offline_request(log: Log, model: Model, row: int, others: Iterable[int]) -> GoldenRequest:
    """Return the request of a row of the log, its own item ranked beside others, with the expected scores."""
    return build_golden_request(model, log.fitted, log.users, log.items, Sample(**build_impression(log, row, others)))


def build_offline_list(log: Log, model: Reranker, row: int, others: Iterable[int]) -> GoldenRequest:
    """Return the request of a row of the log, its own item in a list with others, with the expected scores.

    Items whose logits by the base are equal up to rounding are left out, because their initial order is not defined.
    """
    tables = log.fitted, log.users, log.items
    sample = Sample(**build_impression(log, row, others))
    with torch.no_grad():
        initial = model.eval().score_lists(build_list_batch(*tables, sample)).initial.numpy()
    if log.schema.item is not None:
        sample = Sample(**build_impression(log, row, sample.items[select_apart(initial)].tolist()))
    return build_golden_list(model, *tables, sample)


def build_offline_retrieval(log: Log, model: Retriever, row: int, k: int, exclude_seen: bool) -> GoldenRequest:
    """Return the request for k items at the time of a row of the log, with the expected items and scores."""
    sample = Sample(**build_impression(log, row, []))
    seen = find_seen_items(log, sample.user, sample.timestamp) if exclude_seen else None
    return build_golden_retrieval(model, log.fitted, log.users, log.items, sample, k, seen)


def find_seen_items(log: Log, user: int, timestamp: int) -> NDArray[np.int64]:
    """Return the rows of the items of all events of a user that were visible strictly before a timestamp."""
    if log.schema.prejoined:
        return np.zeros(0, np.int64)
    own = slice(int(log.events.offsets[user]), int(log.events.offsets[user + 1]))
    columns, seen = log.events.columns, log.events.times[own] < timestamp
    if AVAILABLE in columns:
        seen = seen & (columns[AVAILABLE][own] < timestamp)
    return columns["item"][own][seen].astype(np.int64)


def _build_golden_requests(
    log: Log, model: Ranker | Reranker | Retriever, explorer: Explorer | None = None
) -> list[GoldenRequest]:
    rows = _choose_golden_rows(log).tolist()
    if isinstance(model, Retriever):
        return [build_offline_retrieval(log, model, row, _RETRIEVED, not n % 2) for n, row in enumerate(rows)]
    others = sort_items_by_popularity(log)[:50]
    if isinstance(model, Reranker):
        return [build_offline_list(log, model, row, others) for row in rows]
    golden = [build_offline_request(log, model, row, others) for row in rows]
    return golden if explorer is None else [_explore(log, explorer, *one, others) for one in zip(rows, golden)]


def _explore(log: Log, explorer: Explorer, row: int, golden: GoldenRequest, others: Iterable[int]) -> GoldenRequest:
    """Return a golden request with its exploration scores. The row of the log is the seed."""
    sample = Sample(**build_impression(log, row, others))
    return build_golden_exploration(explorer, log.fitted, log.users, log.items, sample, golden, seed=row)


def sort_items_by_popularity(log: Log) -> NDArray[np.int64]:
    """Return the rows of the item table in descending order of training events."""
    counts = np.bincount(log.events.columns["item"][log.rows_of("train")], minlength=len(log.items))
    return np.argsort(-counts, kind="stable")


def _choose_golden_rows(log: Log, count: int = 6) -> NDArray[np.int64]:
    """Return rows spread over the last split with rows, for many users and histories of all lengths.

    A server reads strictly earlier events, so a row that reads an event at its own timestamp is not chosen.

    Raises:
        RunError: every row reads such an event, by the order that the schema declares.
    """
    by_split = (log.rows_of(split) for split in ("test", "valid", "train"))
    rows = next((rows for own in by_split if len(rows := own[_reads_earlier_events(log, own)])), None)
    if rows is None:
        raise RunError(
            str(log.folder),
            "an event of the same user at the timestamp of every sample, which time.order puts before it",
            "samples without such an event, whose scores a server can repeat",
            "train and export a run of the same schema without time.order",
        )
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def _reads_earlier_events(log: Log, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the histories of each row hold strictly earlier events only, as those of a server do."""
    if log.order is None:
        return np.ones(len(rows), bool)
    first = log.events.offsets[log.user(rows)]
    stop = find_first_from(log.events.times, first, rows, log.timestamps.take(rows))
    return stop == log.order.first_tied.take(rows)
