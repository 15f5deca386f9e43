"""Settings of one feature of a schema: its columns, and the encoding to ids or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration

Form: TypeAlias = Literal["id", "multi_id", "numeric", "bucketized", "calendar", "embedding"]
Side: TypeAlias = Literal["context", "user", "item", "candidate"]

_IDS = {"vocab", "hash", "min_count", "share"}
_BUCKETS = {"edges", "quantiles", "log_square"}
_LATE = {"feedback", "available_after", "available_at"}
_ALLOWED: dict[str, set[str]] = {
    "id": _IDS | _LATE,
    "multi_id": _IDS | {"separator", "pool", "weights", "weight_separator"},
    "numeric": {"scale", "missing", "width", "separator"},
    "bucketized": _BUCKETS | _LATE,
    "calendar": {"component", "utc_offset"},
    "embedding": {"source", "allow_leak"},
    "cross": {"features", "hash"},
}
_OUTER = {"outer_key", "outer_separator", "outer_pair_separator"}
_LOOKUP = {"map", "key", "separator", "pair_separator", "becomes"} | _OUTER
_LOOKED_UP = {"id": _IDS, "numeric": {"scale", "missing"}, "bucketized": _BUCKETS}
_ALIASES = {"source": "from", "becomes": "as"}


class Feature(Strict):
    """One feature of an impression.

    An ``embedding`` is a vector that a trained extractor wrote for the user or item (``from: knowledge/v1``). A
    ``cross`` combines the values of several raw columns of a row. A ``lookup`` reads one raw column, a map written as
    text, at the key in another column.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "table": "side",
        "of": "features",
        "part": "component",
        "known_after": "available_after",
        "known_at": "available_at",
    }
    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {
        "kind": {
            "multi": "multi_id",
            "dense": "numeric",
            "bucket": "bucketized",
            "time": "calendar",
            "vector": "embedding",
        },
        "side": {"event": "context"},
        "as": {"dense": "numeric", "bucket": "bucketized"},
    }

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["id", "multi_id", "numeric", "bucketized", "calendar", "embedding", "cross", "lookup"] = Setting(
        description="id (a category), multi_id (a bag of ids, pooled), numeric (a number), bucketized (a number cut "
        "into buckets), calendar (a component of the timestamp), embedding (a pretrained vector of an extractor), "
        "cross (several columns combined) or lookup (one column contains a map, another the key whose value is the "
        "feature)",
    )
    side: Side | None = Setting(
        None,
        description="owner of the column: user or item (read by key from the table under data, or from the log if it "
        "has one value per key), context (the event, in the row itself), candidate (the item of the row, also in the "
        "row itself); default: user and item for the columns of the two keys, context for all others",
    )
    column: str | None = Setting(None, description="the column to read; default: the name of the feature")
    dim: int | None = Setting(None, ge=1, le=4096, description="width of the embedding; default: set by the model")
    vocab: str | tuple[int | str, ...] | None = Setting(
        None,
        description="the vocabulary: a list, or a file (first column of Parquet or of CSV with a header, else one "
        "value per line). Digits in a text file match integers and text. 007 is refused for a column of integers; "
        "default: learned from the training window",
    )
    hash: int | None = Setting(
        None,
        ge=1,
        le=2**31 - 3,
        description="number of hash buckets, instead of a vocabulary. prepare reports the expected share of "
        "colliding values",
    )
    min_count: int = Setting(
        1, ge=1, description="a value that occurs fewer times in the training window is unseen (id 1)"
    )
    share: str | None = Setting(
        None,
        description="name of another feature, with which it shares ids and embedding table. The vocabulary is "
        "learned from the values of both",
    )
    edges: tuple[float, ...] | None = Setting(
        None, min_length=1, description="ascending edges: [6, 12, 18] makes four buckets"
    )
    quantiles: int | None = Setting(
        None, ge=2, le=10_000, description="number of buckets of equal weight, fitted on the training window"
    )
    log_square: bool = Setting(
        False,
        description="true puts a count v into bucket floor(ln(v)^2) if v > 2, else v - 2, like the winners of the "
        "Criteo contest",
    )
    scale: Literal["raw", "log", "minmax", "standard"] = Setting(
        "raw",
        description="raw, log (sign(v) ln(1 + abs(v))), minmax or standard (the last two are fitted on the training "
        "window)",
    )
    missing: float = Setting(0.0, description="value of a null, before scaling")
    width: int | None = Setting(
        None,
        ge=1,
        le=4096,
        description="number of values per row, in a list column or in text split at separator. A row with a "
        "different number of values is an error. scale must be raw or log; default: one value",
    )
    separator: str | None = Setting(
        None,
        min_length=1,
        description="separator of a text column; of a lookup, the separator between pairs; default: a list column, "
        "of a lookup a comma",
    )
    pool: Literal["mean", "sum", "max"] = Setting("mean", description="pooling of the embeddings of the values")
    weights: str | None = Setting(
        None, description="a list column, or text split at separator, with one weight per value"
    )
    weight_separator: str | None = Setting(
        None,
        min_length=1,
        description="separator between a value and its weight in the text. With ':', the text a:0.5|b is a with "
        "weight 0.5 and b with weight 1",
    )
    features: tuple[str, ...] | None = Setting(
        None,
        min_length=2,
        description="two or more columns. Their values are joined as text and hashed. Missing if one of them is null",
    )
    map: str | None = Setting(None, description="the column of pairs, as text (k1:v1,k2:v2) or as a list of them")
    key: str | None = Setting(
        None,
        description="the column of the key to look up in the map. Missing if the map lacks the key. If the map has "
        "the key twice, the first value is used",
    )
    pair_separator: str = Setting(":", min_length=1, description="separator of a key and its value")
    outer_key: str | None = Setting(
        None, description="column of the key that selects the inner map; default: all inner maps, in their order"
    )
    outer_separator: str | None = Setting(
        None,
        min_length=1,
        description="makes the map a map of maps, as text (a^k1:v1,k2:v2|b^k1:v3), with this separator between two "
        "inner maps",
    )
    outer_pair_separator: str = Setting("^", min_length=1, description="separator of an outer key and its map")
    becomes: Literal["id", "numeric", "bucketized"] = Setting(
        "id",
        alias="as",
        description="kind of the value, with the settings of that kind: id (text), numeric or bucketized",
    )
    feedback: bool = Setting(
        False,
        description="true: available only after the event (a rating, a purchase, a dwell time). Allowed in "
        "histories, never for the candidate",
    )
    available_after: Duration | None = Setting(
        None,
        description="delay of this column. All features of one column have the same delay. For the column of the "
        "label it may be longer than label_delay, never shorter; default: label_delay",
    )
    available_at: str | None = Setting(
        None,
        description="column of the timestamp at which the value became available. Null means never. A timestamp "
        "before the event is replaced by the time of the event, with a warning. For the column of the label, it also "
        "sets when the label is available, instead of label_delay",
    )
    component: Literal["hour", "weekday", "hour_of_week"] = Setting(
        "hour", description="hour, weekday (Monday first) or hour_of_week"
    )
    utc_offset: float = Setting(0.0, ge=-14, le=14, description="hours from UTC")
    source: str | None = Setting(
        None,
        alias="from",
        min_length=1,
        description="folder that longrec encode wrote. side selects the vectors of users or of items",
    )
    allow_leak: bool = Setting(
        False,
        description="true accepts vectors that disclose values before they are available according to this schema. "
        "The results report it",
    )

    @classmethod
    def list_kinds(cls, key: str) -> list[str]:
        """Return the kinds whose features take a key. A lookup takes the keys of the kind that it becomes."""
        kinds = [kind for kind, keys in _ALLOWED.items() if key in keys]
        return [*kinds, *(["lookup"] if key in _LOOKUP.union(*_LOOKED_UP.values()) else [])]

    @property
    def form(self) -> Form:
        """Kind of the encoded value: the feature's kind, ``id`` for a cross, and ``as`` for a lookup."""
        if self.kind == "cross":
            return "id"
        return self.becomes if self.kind == "lookup" else self.kind

    @property
    def composed(self) -> bool:
        """True if it reads several raw columns of the row."""
        return self.kind in ("cross", "lookup")

    @property
    def weighted(self) -> bool:
        """True if each of its values has a weight."""
        return self.weights is not None or self.weight_separator is not None

    @model_validator(mode="after")
    def _check(self) -> Feature:
        settings = self.model_fields_set - {"kind", "side", "column", "dim"}
        allowed = _LOOKUP | _LOOKED_UP[self.becomes] if self.kind == "lookup" else _ALLOWED[self.kind]
        wrong = sorted(_ALIASES.get(key, key) for key in settings - allowed)
        if wrong:
            what = f" as {self.becomes!r}" if self.kind == "lookup" else ""
            raise ValueError(f"a feature of kind {self.kind!r}{what} takes no {', '.join(wrong)}")
        if self.kind == "embedding" and (self.source is None or self.side not in ("user", "item") or self.column):
            raise ValueError(
                "an embedding needs from, the folder of knowledge, and side: user or item; it has no column"
            )
        if self.side == "candidate" and (self.kind == "calendar" or self.feedback):
            what = "feedback" if self.feedback else "the calendar"
            raise ValueError(f"{what} is no column of a candidate: side must be context")
        self._check_ids(settings)
        if self.form == "bucketized" and (self.edges is not None) + (self.quantiles is not None) + self.log_square != 1:
            raise ValueError("a bucketized feature needs exactly one of edges, quantiles, log_square")
        if self.edges is not None and list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must rise strictly, got {list(self.edges)}")
        if not self.feedback and (self.available_after is not None or self.available_at is not None):
            raise ValueError("available_after and available_at belong to a feature with feedback: true")
        if self.available_after is not None and self.available_at is not None:
            raise ValueError("takes available_after or available_at, not both")
        if self.feedback and self.side not in (None, "context"):
            raise ValueError("feedback is a column of the event itself: side must be context")
        self._check_columns()
        return self

    def _check_ids(self, settings: set[str]) -> None:
        if self.vocab is not None and self.hash is not None:
            raise ValueError("takes vocab or hash, not both")
        if "min_count" in settings and (self.vocab is not None or self.hash is not None):
            raise ValueError("min_count needs a learned vocabulary: it goes with neither vocab nor hash")
        if self.share is not None and (settings & {"vocab", "hash", "min_count"} or self.feedback):
            raise ValueError(
                "share takes the ids of the other feature: no vocab, hash or min_count of its own, and no feedback"
            )

    def _check_columns(self) -> None:
        """Check the settings of columns with several values, and of several columns."""
        if self.kind == "numeric" and self.separator is not None and self.width is None:
            raise ValueError("separator belongs to a numeric feature of several numbers: set width, their count")
        if self.width is not None and self.scale not in ("raw", "log"):
            raise ValueError("a numeric feature of several numbers takes scale raw or log")
        if self.weight_separator is not None:
            if self.weights is not None:
                raise ValueError("takes weights or weight_separator, not both")
            if self.separator is None or self.weight_separator == self.separator:
                raise ValueError("weight_separator belongs to text: it needs a separator, and another one")
        if self.composed and (self.column is not None or self.side in ("user", "item")):
            raise ValueError(f"a {self.kind} reads raw columns of the row: no column, and side context or candidate")
        if self.kind == "cross" and (self.features is None or self.hash is None):
            raise ValueError("a cross needs features, the columns to combine, and hash")
        if self.kind == "cross" and self.features is not None and len(set(self.features)) < len(self.features):
            raise ValueError("features names a column twice")
        if self.kind == "lookup":
            if self.map is None or self.key is None:
                raise ValueError("a lookup needs map and key, the columns of the map and of its key")
            if self.pair_separator == (self.separator or ","):
                raise ValueError(f"pair_separator and separator are both {self.pair_separator!r}")
            self._check_outer()

    def _check_outer(self) -> None:
        """Check the settings of a map of maps."""
        if self.outer_separator is None:
            if self.model_fields_set & _OUTER:
                raise ValueError("outer_key and outer_pair_separator belong to a map of maps: set outer_separator too")
            return
        inner = (self.separator or ",", self.pair_separator)
        outer = (self.outer_separator, self.outer_pair_separator)
        if len({*inner, *outer}) < 4:
            raise ValueError(
                f"the separators of a map of maps must differ; got {', '.join(map(repr, (*outer, *inner)))}"
            )
