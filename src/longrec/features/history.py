"""Settings of one history of a schema: its columns, its filter and its maximum length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.condition import Condition
from longrec.features.duration import Duration
from longrec.features.fields import RENAMED_COLUMNS, SESSION_RECENCY, TIME_GAP, TOKEN


class History(Strict):
    """Earlier events of the user: their columns, a filter, and the maximum length.

    ``columns`` switches to pre-joined rows: it maps each feature of the history to the list column (or separated text)
    of the row that holds its values, oldest first.

    ``from`` (``tokens/v1``) makes it a history of instance tokens that ``longrec compress`` wrote. ``features`` then
    names ``token``, ``version``, ``time_gap`` and the side columns of that store. ``allow_leak`` reads a store that
    discloses values before they were available, and the results report it.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"of": "features", "last": "max_length"}
    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"features": RENAMED_COLUMNS}

    model_config = ConfigDict(serialize_by_alias=True)

    features: tuple[str, ...] = Setting(
        (),
        validate_default=False,
        description="columns of an event: names of features (id, bucketized, cross, a lookup of one of these kinds, "
        "and multi_id of the item side), and the computed columns time_gap (log2 buckets of the seconds between the "
        "event and the impression), time_since_previous (the same buckets of the time since the previous event of "
        "this history) and session_recency (number of sessions between the event and the newest one). A history of "
        "tokens (from) has token, version, time_gap and side columns of the store; default: of a history of tokens "
        "[token, label, time_gap]",
    )
    source: str | None = Setting(
        None,
        alias="from",
        min_length=1,
        description="makes it a token history: a store that longrec compress wrote, such as tokens/v1 below the "
        "working directory, or a redis:// address",
    )
    max_length: int = Setting(
        50,
        ge=1,
        le=1_000_000,
        description="maximum number of events. The newest are kept. It does not affect the cost of preparation, "
        "because a history is a view",
    )
    where: dict[str, Condition] = Setting(
        default_factory=dict, description="filter of events, by column: a value, a list of values, or {at_least: x}"
    )
    columns: dict[str, str] | None = Setting(
        None,
        description="pre-joined rows: the list column that holds the values of each feature of the history, oldest "
        "first",
    )
    separator: str | None = Setting(
        None, min_length=1, description="pre-joined rows as text: separator of the values; default: list columns"
    )
    session_gap: Duration = Setting(
        "30m", description="of session_recency: a session ends if the next event is more than this later"
    )
    allow_leak: bool = Setting(
        False,
        description="with from: true accepts tokens that disclose values before they are available according to this "
        "schema. The results report it",
    )

    @model_validator(mode="before")
    @classmethod
    def _set_default_features(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("from") is not None and "features" not in value:
            return {**value, "features": (TOKEN, "label", TIME_GAP)}
        return value

    @model_validator(mode="after")
    def _check(self) -> History:
        if not self.features:
            raise ValueError("features must name at least one column")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features names a column twice")
        if self.source is not None and (self.where or self.columns is not None or self.separator is not None):
            raise ValueError("a history of tokens (from) takes no where, columns or separator")
        if self.source is None and "allow_leak" in self.model_fields_set:
            raise ValueError("allow_leak belongs to a history of tokens (from)")
        if self.columns is not None:
            if set(self.columns) != set(self.features):
                raise ValueError("columns must name a list column for each of features: " + ", ".join(self.features))
            if self.where:
                raise ValueError("where needs an event log; pre-joined rows are filtered already")
        elif self.separator is not None:
            raise ValueError("separator belongs to pre-joined rows (columns)")
        if "session_gap" in self.model_fields_set and SESSION_RECENCY not in self.features:
            raise ValueError(f"session_gap cuts sessions for {SESSION_RECENCY}, which features does not name")
        return self
