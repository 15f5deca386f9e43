"""Conditions of a schema on the values of a column: the filter of a history, and the label."""

from __future__ import annotations

from typing import Any

from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict


class Condition(Strict):
    """Condition on the values of a column: exactly one of the three keys."""

    at_least: float | None = Setting(None, description="the number is at least this")
    equals: int | str | None = Setting(None, description="the value is this. action: buy is short for it")
    among: tuple[int | str, ...] | None = Setting(
        None, description="the value is one of these. action: [buy, cart] is short for it"
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


class Label(Strict):
    """The column to predict: 0 and 1, or a condition on its values. A row with a null label is no sample."""

    column: str = Setting(description="the column")
    at_least: float | None = Setting(
        None, description="1 if the number is at least this, else 0: {column: rating, at_least: 4}"
    )
    equals: int | str | None = Setting(
        None, description="1 if the value is this, else 0: {column: action, equals: buy}"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_choice(self) -> Label:
        if self.at_least is not None and self.equals is not None:
            raise ValueError("takes at_least or equals, not both")
        return self
