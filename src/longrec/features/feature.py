"""Settings of one feature of a schema: its columns, and the encoding to ids or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration
from longrec.signatures import show_keys

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


def list_kinds(key: str) -> list[str]:
    """Return the kinds of features that take a key. Empty if all do, whatever their kind.

    >>> list_kinds("quantiles"), list_kinds("dim")
    (['bucketized', 'lookup'], [])
    """
    allowed = {**_ALLOWED, "lookup": _LOOKUP.union(*_LOOKED_UP.values())}
    return [kind for kind, keys in allowed.items() if key in keys]


@show_keys
class Feature(Strict):
    """One feature of an impression. The name of a kind alone (``user: id``) is a feature with its defaults.

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
        description=(
            "id: a category; multi_id: a bag of ids; numeric: a number; bucketized: a number cut into "
            "buckets; calendar: a component of the timestamp; embedding: a vector of an extractor; "
            "cross: several columns combined; lookup: a map in one column, read at the key in another"
        )
    )
    side: Side | None = Setting(
        None,
        description=(
            "owner of the column: user, item, candidate (the item of the row, in the row itself) or "
            "context; default: user and item for their key columns, else context"
        ),
    )
    column: str | None = Setting(None, description="column to read; default: the name of the feature")
    dim: int | None = Setting(None, ge=1, le=4096, description="width of the embedding; default: set by the model")
    vocab: str | tuple[int | str, ...] | None = Setting(
        None,
        description=(
            "the vocabulary: a list, or a file with one value per line or in its first column; default: learned"
        ),
    )
    hash: int | None = Setting(None, ge=1, le=2**31 - 3, description="number of hash buckets, instead of a vocabulary")
    min_count: int = Setting(1, ge=1, description="a value that occurs fewer times in the training window is unseen")
    share: str | None = Setting(
        None, description="name of another feature, with which it shares ids and embedding table"
    )
    edges: tuple[float, ...] | None = Setting(None, min_length=1, description="ascending edges of the buckets")
    quantiles: int | None = Setting(
        None, ge=2, le=10_000, description="number of buckets of equal weight, fitted on the training window"
    )
    log_square: bool = Setting(False, description="put a count v into bucket floor(ln(v)^2) if v > 2, else v - 2")
    scale: Literal["raw", "log", "minmax", "standard"] = Setting(
        "raw",
        description=(
            "scaling of the number: log is sign(v) ln(1 + abs(v)); minmax and standard are fitted on "
            "the training window"
        ),
    )
    missing: float = Setting(0.0, description="value of a null, before scaling")
    width: int | None = Setting(
        None, ge=1, le=4096, description="number of values per row, in a list column or in text; default: one"
    )
    separator: str | None = Setting(
        None,
        min_length=1,
        description=(
            "separator of a text column; default: a list column; of a lookup: separator between "
            "pairs, by default a comma"
        ),
    )
    pool: Literal["mean", "sum", "max"] = Setting("mean", description="pooling of the values' embeddings")
    weights: str | None = Setting(None, description="list column, or separated text, with one weight per value")
    weight_separator: str | None = Setting(
        None, min_length=1, description="separator between a value and its weight in the text"
    )
    features: tuple[str, ...] | None = Setting(None, min_length=2, description="columns to combine, two or more")
    map: str | None = Setting(None, description="column of pairs, as text (k1:v1,k2:v2) or as a list of them")
    key: str | None = Setting(None, description="column of the key to look up in the map")
    pair_separator: str = Setting(":", min_length=1, description="separator of a key and its value")
    outer_key: str | None = Setting(
        None, description="column of the key that selects the inner map of a map of maps; default: all inner maps"
    )
    outer_separator: str | None = Setting(
        None, min_length=1, description="separator between the inner maps of a map of maps"
    )
    outer_pair_separator: str = Setting("^", min_length=1, description="separator of an outer key and its map")
    becomes: Literal["id", "numeric", "bucketized"] = Setting(
        "id", alias="as", description="kind of the value that was looked up"
    )
    feedback: bool = Setting(
        False,
        description=(
            "available only after the event (a rating, a purchase): allowed in histories, never for the candidate"
        ),
    )
    available_after: Duration | None = Setting(
        None, description="delay of this column from the event; default: label_delay of the schema"
    )
    available_at: str | None = Setting(
        None, description="column of the time at which the value became available; null means never"
    )
    component: Literal["hour", "weekday", "hour_of_week"] = Setting(
        "hour", description="component of the timestamp; weekday begins with Monday"
    )
    utc_offset: float = Setting(0.0, ge=-14, le=14, description="hours from UTC")
    source: str | None = Setting(
        None,
        alias="from",
        min_length=1,
        description="folder that `longrec encode` wrote; side selects the vectors of users or of items",
    )
    allow_leak: bool = Setting(
        False, description="accept vectors that disclose values before they are available; the results report it"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """Return the name of a kind as a feature of that kind."""
        return {"kind": value} if isinstance(value, str) else value

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
            kinds = {key: " or ".join(list_kinds(key)) for key in sorted(settings - allowed)}
            takers = ", ".join(f"{_ALIASES.get(key, key)} belongs to {of}" for key, of in kinds.items())
            raise ValueError(f"a feature of kind {self.kind!r}{what} takes no {', '.join(wrong)}; {takers}")
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
