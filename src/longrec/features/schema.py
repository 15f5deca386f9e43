"""The schema: what the columns of an event log mean, and what a model gets to see of them.

A schema names the user, item, time and label columns, the features of an impression and the histories
that stand behind it. ``Fields`` (``features/fields.py``) is the same after fitting, in the words of a model.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration, duration
from longrec.features.fields import TIME_GAP, TOKEN

_NAME = re.compile(r"[\w-]+")
_TAKEN = ("item", "times", "offsets")
"""What a prepared log calls its own columns of an event."""


class TimeColumn(Strict):
    """The moment of an event. Kept as whole milliseconds UTC; with ``unit: step`` as plain whole numbers."""

    column: str
    unit: Literal["auto", "s", "ms", "us", "ns", "step"] = "auto"


class Condition(Strict):
    """Which values of a column count: exactly one of the three."""

    at_least: float | None = None
    equals: int | str | None = None
    among: tuple[int | str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, (int, str)):
            return {"equals": value}
        return {"among": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one(self) -> Condition:
        if sum(part is not None for part in (self.at_least, self.equals, self.among)) != 1:
            raise ValueError("needs exactly one of at_least, equals, among")
        return self


class Label(Strict):
    """The column to predict: 0/1 as it is, or a condition on it. A null label makes no sample."""

    column: str
    at_least: float | None = None
    equals: int | str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Label:
        if self.at_least is not None and self.equals is not None:
            raise ValueError("takes at_least or equals, not both")
        return self


def _time(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class Feature(Strict):
    """One feature: where its values come from and how they become ids or numbers.

    A ``vector`` is what a trained extractor left for its user or item (``from: knowledge/v1``).
    """

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["id", "multi", "dense", "bucket", "time", "vector"]
    table: Literal["event", "user", "item"] | None = None
    column: str | None = None
    dim: int | None = Setting(None, ge=1, le=4096)
    vocab: str | tuple[int | str, ...] | None = None
    hash: int | None = Setting(None, ge=1, le=2**31 - 3)
    min_count: int = Setting(1, ge=1)
    edges: tuple[float, ...] | None = Setting(None, min_length=1)
    quantiles: int | None = Setting(None, ge=2, le=10_000)
    log_square: bool = False
    scale: Literal["raw", "log", "minmax", "standard"] = "raw"
    missing: float = 0.0
    separator: str | None = Setting(None, min_length=1)
    pool: Literal["mean", "sum", "max"] = "mean"
    weights: str | None = None
    feedback: bool = False
    known_after: Duration | None = None
    known_at: str | None = None
    part: Literal["hour", "weekday", "hour_of_week"] = "hour"
    utc_offset: float = Setting(0.0, ge=-14, le=14)
    source: str | None = Setting(None, alias="from", min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Feature:
        given = self.model_fields_set - {"kind", "table", "column", "dim"}
        allowed: dict[str, set[str]] = {
            "id": {"vocab", "hash", "min_count", "feedback", "known_after", "known_at"},
            "multi": {"vocab", "hash", "min_count", "separator", "pool", "weights"},
            "dense": {"scale", "missing"},
            "bucket": {"edges", "quantiles", "log_square", "feedback", "known_after", "known_at"},
            "time": {"part", "utc_offset"},
            "vector": {"source"},
        }
        wrong = sorted("from" if key == "source" else key for key in given - allowed[self.kind])
        if wrong:
            raise ValueError(f"a feature of kind {self.kind!r} takes no {', '.join(wrong)}")
        if self.kind == "vector" and (self.source is None or self.table not in ("user", "item") or self.column):
            raise ValueError("a vector needs from, the folder of knowledge, and table: user or item; it has no column")
        if self.vocab is not None and self.hash is not None:
            raise ValueError("takes vocab or hash, not both")
        if "min_count" in given and (self.vocab is not None or self.hash is not None):
            raise ValueError("min_count belongs to a learnt vocabulary: it goes with neither vocab nor hash")
        if self.kind == "bucket" and (self.edges is not None) + (self.quantiles is not None) + self.log_square != 1:
            raise ValueError("a bucket needs exactly one of edges, quantiles, log_square")
        if self.edges is not None and list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must rise strictly, got {list(self.edges)}")
        if not self.feedback and (self.known_after is not None or self.known_at is not None):
            raise ValueError("known_after and known_at belong to a feature with feedback: true")
        if self.known_after is not None and self.known_at is not None:
            raise ValueError("takes known_after or known_at, not both")
        if self.feedback and self.table not in (None, "event"):
            raise ValueError("feedback is a column of the event itself: table must be event")
        return self


class History(Strict):
    """Past events of the user: which columns, which events, how many of the last ones.

    ``columns`` switches to pre-joined rows: it maps each feature of the history to the list column
    (or separated text) of the row that already holds its past values, oldest first.

    ``from`` (``tokens/v1``) makes it a history of instance tokens that ``longrec compress`` wrote: ``of`` then names
    ``token``, ``version``, ``time_gap`` and the side columns of that store.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    of: tuple[str, ...] = Setting((), validate_default=False)
    source: str | None = Setting(None, alias="from", min_length=1)
    last: int = Setting(50, ge=1, le=1_000_000)
    where: dict[str, Condition] = Setting(default_factory=dict)
    columns: dict[str, str] | None = None
    separator: str | None = Setting(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("from") is not None and "of" not in value:
            return {**value, "of": (TOKEN, "label", TIME_GAP)}
        return value

    @model_validator(mode="after")
    def _fits(self) -> History:
        if not self.of:
            raise ValueError("of must name one column at least")
        if len(set(self.of)) != len(self.of):
            raise ValueError("of names a column twice")
        if self.source is not None and (self.where or self.columns is not None or self.separator is not None):
            raise ValueError("a history of tokens (from) takes no where, columns or separator")
        if self.columns is not None:
            if set(self.columns) != set(self.of):
                raise ValueError("columns must name a list column for each of: " + ", ".join(self.of))
            if self.where:
                raise ValueError("where needs an event log; pre-joined rows are filtered already")
        elif self.separator is not None:
            raise ValueError("separator belongs to pre-joined rows (columns)")
        return self


class Schema(Strict):
    """What the columns mean. See the guide for every key."""

    user: str
    item: str
    time: Annotated[TimeColumn | None, BeforeValidator(_time)] = None
    request: str | None = None
    label: Label
    label_known_after: Duration = "0s"
    features: dict[str, Feature] = Setting(min_length=1)
    histories: dict[str, History] = Setting(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Schema:
        faults = [*self._name_faults(), *self._feature_faults(), *self._history_faults(), *self._leaks()]
        if self.item == self.user:
            faults.append(f"item: is the column of the user, {self.user!r}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _name_faults(self) -> list[str]:
        faults = []
        for name in self.features:
            if name == TIME_GAP:
                faults.append(f"features.{name}: the name is taken by the computed history column")
            elif name in _TAKEN and self.table(name) == "event":
                faults.append(f"features.{name}: the name is taken by the log; call it otherwise and give its column")
        places = [*(f"features.{name}" for name in self.features), *(f"histories.{name}" for name in self.histories)]
        # Names become names of files and of program inputs.
        odd = [place for place in places if not _NAME.fullmatch(place.partition(".")[2])]
        return [*faults, *(f"{place}: a name is made of letters, digits, '_' and '-'" for place in odd)]

    def _feature_faults(self) -> list[str]:
        faults = []
        for name, feature in self.features.items():
            if feature.kind == "time" and self.time is None:
                faults.append(f"features.{name}: kind time needs the schema's time column")
            elif feature.kind == "time" and self.time is not None and self.time.unit == "step":
                faults.append(f"features.{name}: kind time needs moments, and this log counts in steps")
            if feature.known_at is not None and self.time is None:
                faults.append(f"features.{name}: known_at needs the schema's time column")
        return faults

    def _leaks(self) -> list[str]:
        """Whatever would show an impression what is known only after it."""
        own_moment = {self.column(name): name for name, feature in self.features.items() if feature.known_at}
        own_moment |= {feature.known_at: name for name, feature in self.features.items() if feature.known_at}
        feedback = {self.column(name) for name, feature in self.features.items() if feature.feedback}
        late = dict.fromkeys([*feedback, *own_moment], "feedback") | {self.label.column: "label"}
        faults = []
        for name, feature in self.features.items():
            column = self.column(name)
            if column in late and not feature.feedback and feature.kind != "time":
                faults.append(
                    f"features.{name}: reads the {late[column]} column {column!r}, which leaks the answer; "
                    "mark it feedback: true to use it in histories only"
                )
            if feature.weights in late:
                faults.append(
                    f"features.{name}: reads the {late[feature.weights]} column {feature.weights!r} as weights, "
                    "which leaks the answer"
                )
        for name, history in self.histories.items():
            for feature_name, column in (history.columns or {}).items():
                if column in late:
                    faults.append(
                        f"histories.{name}.columns.{feature_name}: reads the {late[column]} column {column!r}, "
                        "which leaks the answer"
                    )
            for column in history.where:
                if column in own_moment:
                    faults.append(
                        f"histories.{name}.where: {column!r} is known at a moment of its own (known_at of "
                        f"{own_moment[column]}), and a filter waits one span for all; use known_after, or no filter"
                    )
        return faults

    def _history_faults(self) -> list[str]:
        faults = []
        for name, history in self.histories.items():
            for column in history.of if history.source is None else ():
                if column == TIME_GAP:
                    if history.columns is not None:
                        faults.append(f"histories.{name}: pre-joined rows carry no times, so no {TIME_GAP}")
                    continue
                feature = self.features.get(column)
                if feature is None:
                    faults.append(
                        f"histories.{name}.of: no feature named {column!r}; known: {', '.join(self.features)}"
                    )
                elif self.table(column) == "user":
                    faults.append(f"histories.{name}.of: {column!r} belongs to the user, it is the same in every event")
                elif feature.kind in ("dense", "time", "vector") or (
                    feature.kind == "multi" and history.columns is not None
                ):
                    faults.append(
                        f"histories.{name}.of: {column!r} of kind {feature.kind} cannot stand in a history; "
                        "use id or bucket"
                    )
                elif feature.kind == "multi" and self.table(column) == "event":
                    faults.append(
                        f"histories.{name}.of: {column!r} has several values an event; only item features may"
                    )
        own = {name: history for name, history in self.histories.items() if history.source is None}
        joined = {name: history.columns is not None for name, history in own.items()}
        if self.time is None and len(own) < len(self.histories):
            faults.append("time: is required for histories of tokens (from)")
        if len(set(joined.values())) > 1:
            faults.append("histories: either all histories are pre-joined (columns) or none is")
        if self.time is None and not (joined and all(joined.values())):
            faults.append("time: is required, unless every history is pre-joined (columns)")
        return faults

    @property
    def prejoined(self) -> bool:
        """Whether rows carry their histories as list columns."""
        own = [history for history in self.histories.values() if history.source is None]
        return bool(own) and all(history.columns is not None for history in own)

    def column(self, name: str) -> str:
        """The column a feature reads."""
        feature = self.features[name]
        if feature.kind == "time" and self.time is not None:
            return self.time.column
        return feature.column or name

    def table(self, name: str) -> Literal["event", "user", "item"]:
        """Who owns a feature; the user and item keys own themselves."""
        feature = self.features[name]
        if feature.table is not None:
            return feature.table
        if feature.feedback or feature.kind == "time":
            return "event"
        return {self.user: "user", self.item: "item"}.get(self.column(name), "event")  # type: ignore[return-value]

    def known_after(self, name: str) -> int:
        """Milliseconds (or steps) from an event to the moment its feedback is known."""
        return self.delay(self.features[name].known_after or self.label_known_after)

    def delay(self, span: str) -> int:
        """A duration in the unit the log keeps its times in."""
        steps = self.time is not None and self.time.unit == "step"
        return duration(span) // (1_000 if steps else 1)

    def is_feedback_column(self, column: str) -> bool:
        """Whether a raw event column is known only after the event."""
        return column == self.label.column or any(
            f.feedback and self.column(n) == column for n, f in self.features.items()
        )
