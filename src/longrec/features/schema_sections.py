"""Sections of a schema: the label, a history, and the condition of a filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration
from longrec.features.fields import RENAMED_COLUMNS, SESSION_RECENCY, TIME_GAP, TOKEN
from longrec.signatures import show_keys


@show_keys
class Condition(Strict):
    """Condition on the values of a column: exactly one of the three keys."""

    at_least: float | None = Setting(None, description="the number is at least this")
    equals: int | str | None = Setting(None, description="the value is this; `action: buy` is short for it")
    among: tuple[int | str, ...] | None = Setting(
        None, description="the value is one of these; `action: [buy, cart]` is short for it"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, (int, str)):
            return {"equals": value}
        return {"among": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_choice(self) -> Condition:
        if sum(value is not None for value in (self.at_least, self.equals, self.among)) != 1:
            raise ValueError("needs exactly one of at_least, equals, among")
        return self


@show_keys
class Label(Strict):
    """The column to predict: 0 and 1, or a condition on its values. A row with a null label is no sample."""

    column: str = Setting(description="column of the label; without a condition it contains 0 and 1")
    at_least: float | None = Setting(None, description="1 if the number is at least this, else 0")
    equals: int | str | None = Setting(None, description="1 if the value is this, else 0")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_choice(self) -> Label:
        if self.at_least is not None and self.equals is not None:
            raise ValueError("takes at_least or equals, not both")
        return self


@show_keys
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
        description=(
            "columns of an event: names of features, and the computed columns time_gap, "
            "time_since_previous and session_recency"
        ),
    )
    source: str | None = Setting(
        None,
        alias="from",
        min_length=1,
        description="store of instance tokens that `longrec compress` wrote: a folder, or a redis:// address",
    )
    max_length: int = Setting(50, ge=1, le=1_000_000, description="maximum number of events; the newest ones are kept")
    where: dict[str, Condition] = Setting(
        default_factory=dict,
        description="filter of events by column: a value, a list of values, or a condition such as {at_least: 4}",
    )
    columns: dict[str, str] | None = Setting(
        None, description="pre-joined rows: list column of the row with the values of each feature, oldest first"
    )
    separator: str | None = Setting(None, min_length=1, description="pre-joined rows as text: separator of the values")
    session_gap: Duration = Setting(
        "30m", description="for session_recency: a session ends if the next event is more than this later"
    )
    allow_leak: bool = Setting(
        False,
        description="with from: accept tokens that disclose values before they are available; the results report it",
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
