"""Offline side of a golden request: a plain batch of the log's own arrays, scored by torch.

Nothing here is shared between rows, read from a store or run by onnxruntime, so the comparison is independent of the
online path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.exploration.explorer import Explorer
from longrec.exploration.noise import draw_noise
from longrec.exporting.catalog import read_catalog
from longrec.exporting.golden import (
    GoldenRequest,
    Sample,
    build_recommend_request,
    build_request,
    choose_decoded_features,
    mask_undecodable,
)
from longrec.exporting.scale import Scale
from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists, NumericListEncoder
from longrec.features.fitted_schema import FittedSchema, concat_lists, gather_lists
from longrec.features.raw_columns import Column, encode_calendar, encode_candidates, encode_context, list_row_features
from longrec.generation.item_search import plan_search
from longrec.index.top import select_top
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Encoder, Reranker, Retriever


def build_golden_request(
    model: nn.Module, fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample
) -> GoldenRequest:
    """Build the golden request of an impression of the log.

    Returns:
        The request to ``/rank``, with probabilities in the order of ``sample.items``.
    """
    with torch.no_grad():
        scores = torch.sigmoid(model.eval()(build_ragged_batch(fitted, users, items, sample)))
    return GoldenRequest(build_request(fitted, users, items, sample), scores.tolist())


def build_golden_exploration(
    explorer: Explorer,
    fitted: FittedSchema,
    users: EntityTable,
    items: EntityTable,
    sample: Sample,
    golden: GoldenRequest,
    seed: int,
) -> GoldenRequest:
    """Return the golden request of an impression with the exploration scores of its items for the noise of a seed."""
    drawn = draw_noise(explorer.noise, seed, len(sample.items))
    noise = {one.name: torch.from_numpy(drawn[one.name]).expand(len(sample.items), -1) for one in explorer.noise}
    scores = explorer(build_ragged_batch(fitted, users, items, sample), noise)
    return msgspec.structs.replace(golden, seed=seed, exploration=scores.score.tolist())


def build_golden_list(
    model: Reranker, fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample
) -> GoldenRequest:
    """Build the golden request of a list, with the probabilities of its items in their order."""
    with torch.no_grad():
        scores = model.eval().score_lists(build_list_batch(fitted, users, items, sample))
    return GoldenRequest(build_request(fitted, users, items, sample), scores.probability.tolist())


def build_list_batch(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> Batch:
    """Build the batch of one list in the form of training: the candidates of one request, with one history."""
    ragged = build_ragged_batch(fitted, users, items, sample)
    request = build_request_batch(fitted, users, items, sample)
    own = [field.name for field in fitted.fields().features if field.side == "item"]
    layout = Layout.grouped(1, np.zeros(len(sample.items), np.int64))
    return replace(request, layout=layout, candidates={name: ragged.candidates[name] for name in own})


def build_golden_tokens(
    model: Encoder, fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample, scale: Scale
) -> GoldenRequest:
    """Build the golden request of an impression of the log, with the expected tokens of its items.

    Args:
        scale: scale of the stored tokens.
    """
    with torch.no_grad():
        vectors = scale.standardize(model.eval().encode(build_ragged_batch(fitted, users, items, sample)).numpy())
    return GoldenRequest(build_request(fitted, users, items, sample), vectors=vectors.tolist())


def build_golden_retrieval(
    model: Retriever,
    fitted: FittedSchema,
    users: EntityTable,
    items: EntityTable,
    sample: Sample,
    k: int,
    seen: NDArray[Any] | None = None,
) -> GoldenRequest:
    """Build the golden request for k items at the time of an impression of the log.

    Args:
        seen: rows of the items of earlier events, which are left out. None: no item is left out.
    """
    rows, own = read_catalog(items), [field.name for field in fitted.fields().features if field.side == "item"]
    batch = build_request_batch(fitted, users, items, sample)
    columns, allowed = {name: _to_tensor(rows[name]) for name in own}, np.ones(len(items) - 1, np.bool_)
    if seen is not None:
        allowed[seen[seen > 0] - 1] = False
    model.eval()
    with torch.no_grad():
        if isinstance(model, Generator):
            best, scores = generate_items(model, batch, columns, k, allowed)
        else:
            every = np.where(allowed, model.score_catalog(batch, columns)[0].numpy(), -np.inf)
            best = select_top(every, min(k, int(allowed.sum())))
            scores = every[best]
    request = build_recommend_request(fitted, users, items, sample, k, seen is not None)
    return GoldenRequest(request, scores.tolist(), items=[items.key(row + 1) for row in best.tolist()])


def generate_items(
    model: Generator,
    batch: Batch,
    catalog: Mapping[str, Tensor | Jagged],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k best allowed items that a generator generates for one request, from 0, and their scores.

    Args:
        catalog: features of all items.
        allowed: mask of all items. None: all.
    """
    config = model.config
    width = None if config.search == "exact" else config.beam_width
    search = plan_search(model.build_trie(catalog), k, width, allowed)
    generated = model.generate(batch, search.trie, search.width, search.width)
    item, score = generated.items[0], generated.scores[0]
    own = (item >= 0) & (True if search.dropped is None else ~search.dropped[item])
    return item[own][:k], score[own][:k]


def build_request_batch(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> Batch:
    """Build the batch of the request of an impression in the form of training, without candidates."""
    batch = build_ragged_batch(fitted, users, items, replace(sample, items=sample.items[:1]))
    own = [field.name for field in fitted.fields().features if field.side != "item"]
    return replace(batch, requests={name: batch.candidates[name] for name in own}, candidates={})


def build_ragged_batch(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> Batch:
    """Build the batch of an impression in the form of training: C rows, each with its own history."""
    size = len(sample.items)
    once, now = np.zeros(size, np.int64), sample.timestamp
    calendar = encode_calendar(fitted, sample.timestamp)
    events, candidates = encode_row_values(fitted, users, items, sample)
    features: dict[str, Tensor | Jagged] = {}
    for field in fitted.fields().features:
        side = fitted.schema.side(field.name)
        if field.name in sample.knowledge:
            vectors = sample.knowledge[field.name]
            features[field.name] = _take_rows(vectors, np.arange(size) if side == "item" else once)
        elif side == "item":
            features[field.name] = _to_tensor(items.as_of(sample.items, now)[field.name])
        elif side == "user":
            features[field.name] = _to_tensor(users.as_of(once + sample.user, now)[field.name])
        elif side == "candidate":
            features[field.name] = _to_tensor(candidates[field.name])
        else:
            own = calendar[field.name] if field.name in calendar else events[field.name]
            features[field.name] = _take_rows(own, once)
    histories = {}
    for name, columns in sample.histories.items():
        length = max((len(column) for column in columns.values()), default=0)
        prejoined = fitted.schema.prejoined and fitted.schema.histories[name].source is None
        repeated = {
            column: _repeat(_mask_encoded(fitted, column, ids) if prejoined else ids, size)
            for column, ids in columns.items()
        }
        histories[name] = HistoryBatch(repeated, torch.arange(size + 1) * length)
    return Batch.single(size, features, histories)


def encode_row_values(
    fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample
) -> tuple[dict[str, Column], dict[str, Column]]:
    """Return encoded event features (one entry) and candidate features (C entries) of the request of a sample.

    A feature whose column is decoded from it keeps the values of the log. Others are encoded from the raw columns.
    """
    request, values = build_request(fitted, users, items, sample), []
    context, user = request["context"], request.get("user")
    keys = request.get("candidates", range(len(sample.items)))
    for side, encoded in (("context", sample.events), ("candidate", sample.candidates)):
        own = {name for name in choose_decoded_features(fitted, side).values() if name is not None}
        others = [name for name in list_row_features(fitted, side) if name not in own]
        if side == "context":
            computed = encode_context(fitted, context, others, user)
        else:
            raw_candidates = request.get("candidate_context", {})
            computed = encode_candidates(fitted, others, raw_candidates, context, user, keys)
        values.append({**{name: _mask_encoded(fitted, name, encoded[name]) for name in own}, **computed})
    return values[0], values[1]


def _mask_encoded(fitted: FittedSchema, name: str, encoded: Any) -> NDArray[Any] | Lists:
    """Return an encoded value of the log as its request has it."""
    encoder = fitted.encoders[name]
    if isinstance(encoded, Lists):
        return Lists(mask_undecodable(encoder, encoded.values), encoded.offsets, encoded.weights)
    if isinstance(encoder, NumericListEncoder):
        return np.asarray(encoded).reshape(-1, encoder.width)
    return mask_undecodable(encoder, np.atleast_1d(np.asarray(encoded)))


def _repeat(column: NDArray[Any] | Lists, times: int) -> Tensor | Jagged:
    if isinstance(column, Lists):
        return _to_tensor(concat_lists([column] * times))
    return _to_tensor(np.concatenate([column] * times))


def _take_rows(column: NDArray[Any] | Lists, rows: NDArray[Any]) -> Tensor | Jagged:
    return _to_tensor(gather_lists(column, rows) if isinstance(column, Lists) else column[rows])


def _to_tensor(column: NDArray[Any] | Lists) -> Tensor | Jagged:
    """Convert ids to int32 and numbers to float32."""
    if isinstance(column, Lists):
        weights = None if column.weights is None else torch.from_numpy(column.weights.astype(np.float32))
        return Jagged(torch.from_numpy(column.values.astype(np.int32)), torch.from_numpy(column.offsets), weights)
    return torch.from_numpy(column.astype(np.float32 if column.dtype.kind == "f" else np.int32))
