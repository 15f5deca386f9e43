"""Sources of item vectors: a list column of a table, the text of a table, and a trained retriever.

Shapes: N items, X width of an item vector.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from longrec.data.relation import Relation, connect, name
from longrec.data.settings import DataConfig, Source
from longrec.errors import DataError, RunError, quote, shorten
from longrec.semantic_ids.settings import VectorsConfig
from longrec.semantic_ids.text_encoder import TextEncoder

_AT_ONCE = 1 << 16
"""Items whose vectors a retriever computes at once."""


@dataclass(frozen=True)
class ItemVectors:
    """Items with their vectors.

    Attributes:
        items: keys, int64 or text, ``[N]``.
        vectors: float32 ``[N, X]``, finite.
        weights: a column of the table as float64 ``[N]``, if one is read.
        text_encoder: what made vectors of text, which new items need too.
    """

    items: pa.Array
    vectors: Float[Tensor, "N X"]
    weights: Float[Tensor, " N"] | None = None
    text_encoder: TextEncoder | None = None


def read_vectors(
    config: VectorsConfig, *, weights: str | None = None, text_encoder: TextEncoder | None = None, seed: int = 0
) -> ItemVectors:
    """Read the vectors of all items.

    Args:
        weights: column of the table with a number per item.
        text_encoder: encoder of the text of earlier items. Default: one is fitted to this text.

    Raises:
        DataError: an item twice or without a key, a vector that is missing, of another width or not finite, or a
            weight that is negative or not finite.
        RunError: a run or bundle without item vectors.
    """
    if config.run is not None:
        return _check(*_read_retriever(Path(config.run)), config.run)
    assert config.items is not None
    with open_relation(config.items, "items") as table:
        needed = {config.item: "vectors.item", **({weights: "capacity.weights"} if weights else {})}
        own = {config.column: "vectors.column"} if config.column else dict.fromkeys(config.text, "vectors.text")
        table.need({**needed, **own})
        table.no_nulls(config.item, "key", "item")
        key = f"{name(config.item)}::{table.key_type(config.item)}"
        weight = "NULL" if weights is None else f"{name(weights)}::DOUBLE"
        if weights is not None:
            table.numeric(weights, "write a number for each item")
        content = _vector_sql(table, config.column) if config.column else _text_sql(config.text)
        rows = table.table(f"SELECT {key} AS item, {content} AS content, {weight} AS weight FROM {table.view}")
        if config.column and table.types[config.column] == "VARCHAR":
            _check_lists(table, config.column)
        where = table.where
    items, contents = rows["item"].combine_chunks(), rows["content"].combine_chunks()
    weight_N = None if weights is None else _read_weights(rows["weight"], items, f"{where}: column {weights!r}")
    if config.column:
        return _check(items, _stack_lists(contents, items, f"{where}: column {config.column!r}"), where, weight_N)
    texts = pc.fill_null(contents, "").to_pylist()
    encoder = TextEncoder.fit(texts, config.width, seed, where) if text_encoder is None else text_encoder
    return _check(items, torch.from_numpy(encoder.encode(texts)), where, weight_N, encoder)


def count_distinct(vectors: Float[Tensor, "N X"]) -> int:
    """Return the number of different vectors, by their products with one random vector."""
    random = torch.Generator().manual_seed(0)
    direction = torch.randn(vectors.shape[1], generator=random, dtype=torch.float64)
    products = [(chunk.double() @ direction).numpy() for chunk in torch.split(vectors, _AT_ONCE)]
    return len(np.unique(np.concatenate(products)))


@contextlib.contextmanager
def open_relation(source: Source, role: str) -> Iterator[Relation]:
    """Open an input as a relation of its own."""
    config = DataConfig(log=source)
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(connect(config, Path(scratch))) as con:
        yield Relation(con, role, source, Path(scratch))


def _vector_sql(table: Relation, column: str) -> str:
    kind = table.types[column]
    if kind.endswith("]"):
        return f"{name(column)}::FLOAT[]"
    if kind == "VARCHAR":  # such as [0.5, -1.2] in a text file
        return f"try_cast({name(column)} AS FLOAT[])"
    raise DataError(
        f"{table.where}: column {column!r}",
        f"values of type {kind}",
        "a list of numbers per item",
        "build the list with a query: {query: SELECT item_id, [a, b, c] AS vector FROM ...}",
    )


def _check_lists(table: Relation, column: str) -> None:
    """Raise an error for text that is not a list of numbers.

    Raises:
        DataError: if there is any.
    """
    text, where = name(column), f"{table.where}: column {column!r}"
    bad = f"FROM {table.view} WHERE {text} IS NOT NULL AND try_cast({text} AS FLOAT[]) IS NULL"
    if count := table.one(f"SELECT count(*) {bad}"):
        shown = quote(shorten(table.one(f"SELECT {text} {bad} LIMIT 1"), 40))
        raise DataError(
            where,
            f"text that is not a list of numbers, of {_count_items(count)}, such as {shown}",
            "lists such as [0.5, -1.2]",
            "split it with a query: {query: \"SELECT item_id, string_split(v, ' ')::FLOAT[] AS vector FROM ...\"}",
        )


def _text_sql(columns: tuple[str, ...]) -> str:
    return "concat_ws(' ', " + ", ".join(f"{name(column)}::VARCHAR" for column in columns) + ")"


def _stack_lists(lists: pa.Array, items: pa.Array, where: str) -> Tensor:
    """Return the lists as one matrix."""
    lengths = pc.list_value_length(lists)
    if lengths.null_count:
        row = int(np.flatnonzero(lengths.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            where,
            f"no vector of {_count_items(lengths.null_count)}, first {quote(items[row].as_py())} in row {row + 1}",
            "a list of numbers for each item",
            "leave these items out with a query, or give them a vector",
        )
    if not len(lists):
        raise DataError(where, "no items", "at least as many items as codes of a level")
    width = lengths.to_numpy()
    usual = int(np.bincount(width).argmax())
    odd = np.flatnonzero(width != usual)
    if len(odd):
        row = int(odd[0])
        what = f"{_count_items(len(odd))} of another width: {quote(items[row].as_py())} in row {row + 1} has "
        what += f"{width[row]} numbers"
        raise DataError(where, what, f"{usual}, as most items have", "vectors of one width come from one model")
    if usual == 0:
        raise DataError(where, "empty vectors", "a list of numbers for each item")
    flat = lists.flatten()
    if flat.null_count:
        raise _not_finite(items, np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False)) // usual, where)
    return torch.from_numpy(flat.to_numpy().reshape(-1, usual).astype(np.float32))


def _count_items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"


def _not_finite(items: pa.Array, rows: NDArray[np.int64], where: str) -> DataError:
    first = int(rows[0])
    return DataError(
        where,
        f"a number that is null, NaN or infinite in the vectors of {_count_items(len(np.unique(rows)))}, first "
        f"{quote(items[first].as_py())} in row {first + 1}",
        "finite numbers",
        "drop these items, or compute their vectors again",
    )


def _read_weights(column: pa.ChunkedArray, items: pa.Array, where: str) -> Tensor:
    weights = pc.fill_null(column, 0.0).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        row = int(bad[0])
        what = f"the weight {weights[row]} of the item {quote(items[row].as_py())} in row {row + 1}"
        raise DataError(where, what, "finite weights, 0 or more", "a missing weight counts as 0")
    return torch.from_numpy(np.array(weights, np.float64))


def _check(
    items: pa.Array,
    vectors: Tensor,
    where: str,
    weights: Tensor | None = None,
    text_encoder: TextEncoder | None = None,
) -> ItemVectors:
    finite_N = vectors.isfinite().all(1)
    if not bool(finite_N.all()):
        raise _not_finite(items, (~finite_N).nonzero().squeeze(1).numpy(), where)
    counts = items.value_counts()
    many = pc.greater(counts.field("counts"), 1)
    if pc.any(many).as_py():
        first = counts.filter(many)[0].as_py()
        raise DataError(
            where,
            f"{_count_items(pc.sum(many).as_py())} in several rows, such as {quote(first['values'])} in "
            f"{first['counts']}",
            "one row per item",
            "keep one row of each with a query, the newest of several versions",
        )
    return ItemVectors(items, vectors, weights, text_encoder)


def _read_retriever(folder: Path) -> tuple[pa.Array, Tensor]:
    """Return the items of a bundle or a run, and their vectors."""
    from longrec.exporting.bundle import MANIFEST

    return _read_bundle(folder) if (folder / MANIFEST).exists() else _read_run(folder)


def _read_bundle(folder: Path) -> tuple[pa.Array, Tensor]:
    from longrec.exporting.bundle import INDEX, Bundle

    bundle = Bundle.open(folder)
    try:
        if INDEX not in bundle.manifest.files:
            raise _no_vectors(folder, bundle.manifest.kind)
        vectors = np.load(bundle.files / INDEX, allow_pickle=False)
        return _to_array(bundle.items.keys.values), torch.from_numpy(np.array(vectors, np.float32))
    finally:
        bundle.close()


def _read_run(folder: Path) -> tuple[pa.Array, Tensor]:
    from longrec.data.catalog import build_catalog
    from longrec.models.core.kinds import VectorRetriever
    from longrec.training.finished_run import open_run

    run = open_run(folder)
    model, log = run.model(), run.log()
    if not isinstance(model, VectorRetriever):
        raise _no_vectors(folder, str(run.results.get("model", "model")))
    newest = int(np.iinfo(np.int64).max)
    vectors = []
    with torch.inference_mode():
        for first in range(1, len(log.items), _AT_ONCE):
            rows = np.arange(first, min(first + _AT_ONCE, len(log.items)))
            vectors.append(model.items(build_catalog(log, rows, newest)).float())
    return _to_array(log.items.keys.values), torch.cat(vectors).clone()


def _to_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _no_vectors(folder: Path, kind: str) -> RunError:
    return RunError(
        str(folder),
        f"{kind}, which has no vectors of items",
        "a retriever whose score is an inner product, such as sasrec or youtube_dnn",
        "longrec models lists the retrievers",
    )
