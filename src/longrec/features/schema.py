"""The schema: the meaning of the columns of an event log, and the inputs of a model.

A schema names the user, item, time and label columns, the features of an impression and its histories. ``Fields``
(``features/fields.py``) describes the inputs of a model after fitting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration, parse_duration
from longrec.features.feature import Feature, Side
from longrec.features.feedback_delays import find_delay_faults
from longrec.features.fields import COMPUTED, LOG_ARRAYS
from longrec.features.optional_keys import find_missing_key_faults
from longrec.features.schema_sections import Condition, History, Label
from longrec.features.time_column import TimeColumn
from longrec.signatures import show_keys

__all__ = ["Condition", "Feature", "History", "Label", "Schema", "TimeColumn", "parse_duration"]

_NAME = re.compile(r"[\w-]+")
"""Names of features and histories, which are part of file names."""


def _expand_time(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


@show_keys
class Schema(Strict):
    """Meaning of the columns. See the guide for every key. Without a label, every event is a positive.

    A schema without stored histories may leave out ``time``, ``item`` and ``user``. Without a user, every row is one.

    >>> schema = Schema(user="u", item="i", time="t", label="y", features={"u": "id", "i": {"kind": "id"}})
    >>> schema.features["u"].kind
    'id'
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"label_known_after": "label_delay"}
    next_fault: ClassVar[re.Pattern[str] | None] = re.compile(r"; (?=(?:features|histories|time)[.:]|item: )")

    user: str | None = Setting(
        None, description="column of the user: 64-bit integers or text, never null; without it, every row is a user"
    )
    item: str | None = Setting(
        None, description="column of the item: 64-bit integers or text; null if an event has no item"
    )
    time: Annotated[TimeColumn | None, BeforeValidator(_expand_time)] = Setting(
        None, description="time of an event; a name is short for {column: NAME}"
    )
    request: str | None = Setting(
        None, description="column that identifies the page view in which several candidates were shown"
    )
    candidate: str | None = Setting(
        None,
        description=(
            "column with 1 in rows of candidates, which are samples and no events, so that no history has them; 0 or "
            "null in events"
        ),
    )
    label: Label | None = Setting(
        None, description="value to predict; a name is a column of 0 and 1; without it, every event is a positive"
    )
    label_delay: Duration = Setting(
        "0s", description="delay from an event until its label and its feedback columns are available"
    )
    casts: dict[str, Literal["int", "float", "text"]] = Setting(
        default_factory=dict, description="type to which the values of a raw column are converted, by column"
    )
    features: dict[str, Feature] = Setting(min_length=1, description="features of an impression, by name")
    histories: dict[str, History] = Setting(default_factory=dict, description="histories of the user, by name")

    @model_validator(mode="after")
    def _check(self) -> Schema:
        faults = [*self._list_name_faults(), *self._list_feature_faults()]
        faults += [*self._list_history_faults(), *self._list_leaks()]
        if self.item is not None and self.item == self.user:
            faults.append(f"item: is the column of the user, {self.user!r}")
        faults += self._list_candidate_row_faults()
        if self.time is not None and self.time.order is not None:
            if self.request is not None:
                faults.append(
                    "time.order: rows of one request have no order among themselves; leave out request or order"
                )
            if self.prejoined:
                faults.append("time.order: pre-joined rows contain their histories; leave it out")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _list_candidate_row_faults(self) -> list[str]:
        """List what a log with rows of candidates must not have."""
        if self.candidate is None:
            return []
        if self.time is None or self.prejoined:
            what = "time: is required" if self.time is None else "histories: are pre-joined"
            return [f"candidate: marks rows that no stored history has, and {what}; leave it out"]
        used = [f"features.{name}" for name in self.features if self.candidate in self.columns(name)]
        used += [f"histories.{name}.where" for name, one in self.histories.items() if self.candidate in one.where]
        faults = [f"{path}: reads {self.candidate!r}, the column of candidate, which no request has" for path in used]
        if self.time.order is not None:
            faults.append("time.order: rows of candidates have no order; leave out candidate or order")
        return faults

    def _list_name_faults(self) -> list[str]:
        faults = []
        for name in self.features:
            if name in COMPUTED:
                faults.append(f"features.{name}: the name is taken by a computed history column")
            elif name in LOG_ARRAYS and self.in_row(name):
                faults.append(f"features.{name}: the name is taken by the log; rename it and set its column")
        paths = [*(f"features.{name}" for name in self.features), *(f"histories.{name}" for name in self.histories)]
        # Names become names of files and of program inputs.
        odd = [path for path in paths if not _NAME.fullmatch(path.partition(".")[2])]
        return [*faults, *(f"{path}: a name is made of letters, digits, '_' and '-'" for path in odd)]

    def _list_feature_faults(self) -> list[str]:
        faults = []
        for name, feature in self.features.items():
            if feature.kind == "calendar" and self.time is None:
                faults.append(f"features.{name}: kind calendar needs the schema's time column")
            elif feature.kind == "calendar" and self.time is not None and self.time.unit == "step":
                faults.append(f"features.{name}: kind calendar needs timestamps, and this log counts in steps")
            if feature.available_at is not None and self.time is None:
                faults.append(f"features.{name}: available_at needs the schema's time column")
            if feature.share is not None:
                fault = self._find_share_fault(name, feature.share)
                faults += [f"features.{name}.share: {fault}"] if fault else []
        return [*faults, *self._list_candidate_faults()]

    def _find_share_fault(self, name: str, shared: str) -> str:
        other = self.features.get(shared)
        if other is None or shared == name:
            choices = ", ".join(n for n, f in self.features.items() if n != name and f.kind in ("id", "multi_id"))
            return f"no other feature named {shared!r}; known: {choices or 'none'}"
        if other.share is not None:
            return f"{shared!r} shares the ids of {other.share!r} itself; name that one"
        if other.feedback or not (other.kind in ("id", "multi_id") or (other.kind == "lookup" and other.form == "id")):
            return f"{shared!r} must be of kind id or multi_id, and no feedback"
        dims = self.features[name].dim, other.dim
        if dims[0] is not None and dims[0] != dims[1]:
            return f"one table has one width, and dim is {dims[0]} here and {dims[1] or 'not set'} for {shared!r}"
        return ""

    def _list_candidate_faults(self) -> list[str]:
        """List columns that a request could send neither once nor with every candidate."""
        faults = []
        plain = {
            owner: {
                column: name
                for name, feature in self.features.items()
                if self.side(name) == owner and not feature.composed and feature.kind != "calendar"
                for column in self.columns(name)
            }
            for owner in ("context", "candidate")
        }
        for column, name in plain["candidate"].items():
            if column in plain["context"]:
                faults.append(
                    f"features.{name}: the column {column!r} belongs to the candidate here and to the context for "
                    f"{plain['context'][column]!r}; give both the same side"
                )
        own: set[str | None] = {*plain["candidate"], self.item}
        for name, feature in self.features.items():
            if feature.composed and self.side(name) == "context":
                faults += [
                    f"features.{name}: the column {column!r} belongs to the candidate, so the {feature.kind} does; "
                    "set side: candidate"
                    for column in self.columns(name)
                    if column in own
                ]
        return faults

    def _list_leaks(self) -> list[str]:
        """List features that would show an impression values that become available only after it."""
        own_times = {self.column(name): name for name, feature in self.features.items() if feature.available_at}
        own_times |= {feature.available_at: name for name, feature in self.features.items() if feature.available_at}
        feedback = {self.column(name) for name, feature in self.features.items() if feature.feedback}
        late = dict.fromkeys([*feedback, *own_times], "feedback")
        if self.label is not None:
            late[self.label.column] = "label"
        if self.time is not None and self.time.available_at is not None:
            late.setdefault(self.time.available_at, "available_at")
        faults = []
        for name, feature in self.features.items():
            for column in self.columns(name):
                if column not in late or feature.feedback or feature.kind == "calendar":
                    continue
                what, do = f"features.{name}: reads the {late[column]} column {column!r}", ""
                if column == feature.weights:
                    what += " as weights"
                elif not feature.composed:
                    do = "; mark it feedback: true to use it in histories only"
                faults.append(f"{what}, which leaks the answer{do}")
        for name, history in self.histories.items():
            for feature_name, column in (history.columns or {}).items():
                if column in late:
                    faults.append(
                        f"histories.{name}.columns.{feature_name}: reads the {late[column]} column {column!r}, "
                        "which leaks the answer"
                    )
            for column in history.where:
                if column in own_times:
                    faults.append(
                        f"histories.{name}.where: {column!r} has its own timestamp (available_at of "
                        f"{own_times[column]}), and a filter has one delay for all; use available_after, or no filter"
                    )
        return [*faults, *self._list_delay_faults()]

    def _list_delay_faults(self) -> list[str]:
        feedback = {name: (self.column(name), feature) for name, feature in self.features.items() if feature.feedback}
        return find_delay_faults(feedback, self.label_column, self.label_delay, self.delay)

    def _list_history_faults(self) -> list[str]:
        faults = []
        for name, history in self.histories.items():
            for column in history.features if history.source is None else ():
                if column in COMPUTED:
                    if history.columns is not None:
                        faults.append(f"histories.{name}: pre-joined rows carry no times, so no {column}")
                    continue
                feature = self.features.get(column)
                if feature is None:
                    faults.append(
                        f"histories.{name}.features: no feature named {column!r}; known: {', '.join(self.features)}"
                    )
                elif self.side(column) == "user":
                    faults.append(
                        f"histories.{name}.features: {column!r} belongs to the user, it is the same in every event"
                    )
                elif feature.form in ("numeric", "calendar", "embedding") or (
                    (feature.kind == "multi_id" or feature.composed) and history.columns is not None
                ):
                    faults.append(
                        f"histories.{name}.features: {column!r} of kind {feature.kind} cannot be in a history; "
                        "use id or bucketized"
                    )
                elif feature.kind == "multi_id" and self.in_row(column):
                    faults.append(
                        f"histories.{name}.features: {column!r} has several values per event; only item features may"
                    )
        own = {name: history for name, history in self.histories.items() if history.source is None}
        joined = {name: history.columns is not None for name, history in own.items()}
        if len(set(joined.values())) > 1:
            faults.append("histories: either all histories are pre-joined (columns) or none is")
        keys = {"user": self.user, "item": self.item, "time": None if self.time is None else self.time.column}
        sides = {name: self.side(name) for name in self.features}
        stored = {name: joined.get(name, False) for name in self.histories}
        return [*faults, *find_missing_key_faults(keys, sides, stored, self.request is not None)]

    @property
    def prejoined(self) -> bool:
        """True if rows contain their histories as list columns."""
        own = [history for history in self.histories.values() if history.source is None]
        return bool(own) and all(history.columns is not None for history in own)

    def column(self, name: str) -> str:
        """Return the column that a feature reads."""
        feature = self.features[name]
        if feature.kind == "calendar" and self.time is not None:
            return self.time.column
        return feature.column or name

    def columns(self, name: str) -> tuple[str, ...]:
        """Return all raw columns of the row that a feature reads, without the timestamp of its feedback."""
        feature = self.features[name]
        if feature.kind == "cross":
            return feature.features or ()
        if feature.kind == "lookup":
            assert feature.map is not None
            assert feature.key is not None
            return tuple(dict.fromkeys(filter(None, (feature.map, feature.outer_key, feature.key))))
        return (self.column(name), *([] if feature.weights is None else [feature.weights]))

    def side(self, name: str) -> Side:
        """Return the side of a feature. The columns of the user and of the item belong to their own side.

        A ``candidate`` feature is a column of the row, as a ``context`` feature is, but a request sends it with each
        candidate. A cross or a lookup of a candidate's column belongs to the candidate.
        """
        feature = self.features[name]
        if feature.side is not None:
            return feature.side
        if feature.feedback or feature.kind == "calendar":
            return "context"
        if feature.composed:
            plain = {n: f for n, f in self.features.items() if f.side == "candidate" and not f.composed}
            theirs = {self.item, *(column for n in plain for column in self.columns(n))}
            return "candidate" if theirs.intersection(self.columns(name)) else "context"
        own = self.column(name)
        return "user" if own == self.user else "item" if own == self.item else "context"

    def in_row(self, name: str) -> bool:
        """Return True if a feature reads columns of the log's own rows: of the context or of the candidate."""
        return self.side(name) in ("context", "candidate")

    def available_after(self, name: str) -> int:
        """Return the milliseconds (or steps) from an event until its feedback is available."""
        return self.delay(self.features[name].available_after or self.label_delay)

    @property
    def label_column(self) -> str | None:
        """Column of the label. None if every event is a positive."""
        return None if self.label is None else self.label.column

    @property
    def label_available_at(self) -> str | None:
        """Feedback feature of the label's column that has ``available_at``, the timestamp of each label."""
        named = [n for n, f in self.features.items() if f.available_at and self.column(n) == self.label_column]
        return named[0] if named else None

    @property
    def longest_label_delay(self) -> int:
        """Milliseconds (or steps) from an event to its label: the longest delay of the column. 0 without a column."""
        if self.label is None:
            return 0  # that an event is a positive is available with the event
        own = [n for n, f in self.features.items() if f.feedback and self.column(n) == self.label.column]
        return max([self.delay(self.label_delay), *map(self.available_after, own)])

    def delay(self, span: str) -> int:
        """Convert a duration to the unit of the log's timestamps."""
        return parse_duration(span) * self.per_second // 1_000

    @property
    def per_second(self) -> int:
        """Units of the log's timestamps per second. A step counts as one second."""
        return 1 if self.time is not None and self.time.unit == "step" else 1_000

    def is_feedback_column(self, column: str) -> bool:
        """Return True if a raw event column is available only after the event."""
        return column == self.label_column or any(
            f.feedback and self.column(n) == column for n, f in self.features.items()
        )
