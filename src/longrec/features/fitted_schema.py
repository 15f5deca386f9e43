"""A fitted schema: the schema and one encoder per feature, saved as data, loaded by training and by serving."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.config import upgrade
from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.compose import ColumnLocator, check_cross_types, compose_column, split_multi_values
from longrec.features.feature_encoders import CalendarEncoder, CrossEncoder, Encoder, IdEncoder, Lists
from longrec.features.fields import COMPUTED, Field, Fields
from longrec.features.float32 import to_float32
from longrec.features.manifest import read_manifest
from longrec.features.schema import Schema
from longrec.features.token_columns import TokenSpec
from longrec.features.vocabulary import Keys

FORMAT = "longrec-features-1"


class FittedSchema:
    """Encodes raw values to model inputs, offline and online.

    Attributes:
        tokens: contents of the token store of each token history.
        knowledge: width of each embedding feature, its presence flag included.
    """

    def __init__(
        self,
        schema: Schema,
        encoders: dict[str, Encoder],
        tokens: Mapping[str, TokenSpec] | None = None,
        knowledge: Mapping[str, int] | None = None,
    ) -> None:
        self.schema, self.encoders = schema, encoders
        self.tokens = dict(tokens or {})
        self.knowledge = dict(knowledge or {})

    def encode(self, name: str, array: pa.Array, where: str, weights: pa.Array | None = None) -> NDArray[Any] | Lists:
        """Encode a raw column, or the composed column of a cross or a lookup.

        Returns:
            int32 ids, float32 numbers, or ``Lists`` for a multi_id feature.

        Raises:
            DataError: if values have the wrong type. The message has the location ``where``.
        """
        feature, encoder = self.schema.features[name], self.encoders[name]
        assert not isinstance(encoder, CalendarEncoder)
        if feature.kind != "multi_id":
            return encoder.encode(array, where)
        flat, offsets, own = split_multi_values(feature, array, where)
        if own is None:
            own = _read_weights(weights, feature.separator, offsets, where)
        return Lists(encoder.encode(flat, where), offsets, own)

    def encode_row(self, name: str, columns: Mapping[str, pa.Array], locate: ColumnLocator) -> NDArray[Any] | Lists:
        """Encode a feature of any kind from the raw columns of its rows, as ``encode``.

        Args:
            columns: raw columns by name, including those of ``Schema.columns``.
            locate: returns the name of a raw column in messages.

        Raises:
            DataError: if values have the wrong type.
        """
        feature, encoder = self.schema.features[name], self.encoders[name]
        if isinstance(encoder, CrossEncoder):
            check_cross_types(encoder, feature, columns, locate)
        if feature.composed:
            return self.encode(name, compose_column(feature, columns, locate), locate(self.schema.columns(name)[0]))
        column = self.schema.column(name)
        weights = None if feature.weights is None else columns[feature.weights]
        return self.encode(name, columns[column], locate(column), weights)

    def encode_unknown(self, name: str) -> NDArray[Any] | Lists:
        """Return the entry of an unknown user or item: unseen id, missing value, or empty list."""
        feature, encoder = self.schema.features[name], self.encoders[name]
        if feature.kind == "multi_id":
            weights = np.zeros(0, np.float32) if feature.weighted else None
            return Lists(np.zeros(0, np.int32), np.zeros(2, np.int64), weights)
        assert not isinstance(encoder, CalendarEncoder)
        key = self.schema.column(name) in (self.schema.user, self.schema.item)
        return np.array([feature_encoders.UNSEEN], np.int32) if key else encoder.encode(pa.nulls(1), name)

    def get_not_yet_id(self, name: str) -> int:
        """Return the id of a feedback value that is not yet available: the last row of its table."""
        return self.encoders[name].rows

    def list_features(self, side: str) -> list[str]:
        """List the features of one side in schema order, without embeddings, which are in stores."""
        schema = self.schema
        return [n for n, f in schema.features.items() if schema.side(n) == side and f.kind != "embedding"]

    def fields(self) -> Fields:
        """Return the inputs of a model."""
        features = [name for name, feature in self.schema.features.items() if not feature.feedback]
        histories = {
            name: self.tokens[name].columns(name, history.features)
            if history.source
            else tuple(map(self.field, history.features))
            for name, history in self.schema.histories.items()
        }
        return Fields(tuple(map(self.field, features)), histories)

    def field(self, name: str) -> Field:
        """Return one field by the name of its feature or computed history column."""
        if name in COMPUTED:
            return Field(name, "id", COMPUTED[name])
        feature, side = self.schema.features[name], self.schema.side(name)
        owner = "item" if side == "candidate" else side
        if feature.kind == "embedding":
            return Field(name, "embedding", 0, feature.dim, side=owner, width=self.knowledge[name])
        if feature.width is not None:
            return Field(name, "numbers", 0, feature.dim, side=owner, width=feature.width)
        kind = {"multi_id": "multi_id", "numeric": "numeric"}.get(feature.form, "id")
        rows = self.encoders[name].rows + feature.feedback
        dim, share = (self.schema.features[feature.share or name].dim, feature.share or "")
        result_field = Field(name, kind, rows, dim, feature.pool, feature.weighted, owner, feature.feedback)  # type: ignore[arg-type]
        return replace(result_field, share=share) if share else result_field

    def save(self, folder: Path) -> None:
        """Write ``features.json`` and one Parquet file per vocabulary."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: encoder for name, encoder in self.encoders.items() if not self.schema.features[name].share}
        content = {
            "format": FORMAT,
            "schema": self.schema.model_dump(mode="json", exclude_unset=True),
            "encoders": {name: feature_encoders.dump_encoder(encoder) for name, encoder in own.items()},
            "tokens": {name: asdict(spec) for name, spec in self.tokens.items()},
            "knowledge": self.knowledge,
        }
        for name, encoder in own.items():
            if isinstance(encoder, IdEncoder):
                pq.write_table(pa.table({"value": encoder.keys.values}), folder / f"vocab.{name}.parquet")
        (folder / "features.json").write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> FittedSchema:
        """Load a saved schema.

        Raises:
            DataError: if the folder does not have this format.
        """
        content = read_manifest(folder / "features.json", FORMAT, "a fitted schema", "run prepare again", DataError)
        encoders = {}
        for name, state in content["encoders"].items():
            path = folder / f"vocab.{name}.parquet"
            keys = Keys.read(path, "value") if state["kind"] == "id" else None
            encoders[name] = feature_encoders.load_encoder(state, keys)
        tokens = {name: TokenSpec(**spec) for name, spec in content.get("tokens", {}).items()}
        schema = Schema.model_validate(upgrade(Schema, content["schema"]))
        encoders |= {name: encoders[feature.share] for name, feature in schema.features.items() if feature.share}
        return cls(schema, encoders, tokens, content.get("knowledge"))


def gather_lists(column: Lists, rows: NDArray[Any]) -> Lists:
    """Gather the lists of some rows in order, without a loop.

    Args:
        rows: integers ``[n]``, rows of ``column``.
    """
    rows = rows.astype(np.int64, copy=False)  # the last row of a narrow type has no successor in it
    start, stop = column.offsets[rows], column.offsets[rows + 1]
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    at = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Lists(column.values.take(at), offsets, None if column.weights is None else column.weights.take(at))


def concat_lists(columns: Iterable[Lists]) -> Lists:
    """Concatenate columns of lists."""
    columns = list(columns)
    lengths = np.concatenate([np.diff(column.offsets) for column in columns])
    weights = [column.weights for column in columns if column.weights is not None]
    return Lists(
        np.concatenate([column.values for column in columns]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate(weights) if weights else None,
    )


def _read_weights(
    array: pa.Array | None, separator: str | None, offsets: NDArray[np.int64], where: str
) -> NDArray[np.float32] | None:
    if array is None:
        return None
    flat, own = feature_encoders.flatten(array, separator, f"{where}: weights")
    if not np.array_equal(own, offsets):
        raise DataError(f"{where}: weights", "lists of other lengths than the values", "one weight per value")
    if flat.null_count:
        raise DataError(f"{where}: weights", f"{flat.null_count} null", "a number for every value")
    if separator is None:
        return to_float32(feature_encoders.cast_numbers(flat, f"{where}: weights"), f"{where}: weights")
    weights = feature_encoders.parse_numbers(flat, f"{where}: weights")
    if np.isnan(weights).any():
        raise DataError(f"{where}: weights", "a weight that is no number", "a number for every value")
    return to_float32(weights, f"{where}: weights")


def copy_time_unit(schema: Schema, fitted: Schema) -> Schema:
    """Return a schema with the time unit that the fitted schema has, if it has not set its own."""
    if schema.time is None or fitted.time is None or schema.time.unit != "auto":
        return schema
    return schema.model_copy(update={"time": schema.time.model_copy(update={"unit": fitted.time.unit})})
