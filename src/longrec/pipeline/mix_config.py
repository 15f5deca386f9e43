"""Config of the last stage of a pipeline: quotas, fixed slots and frequency caps of the page that is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from longrec.config import Strict
from longrec.features.duration import Duration

Value = int | float | str


class Selection(Strict):
    """Items of one source, or of a value of an attribute of the item."""

    source: str | None = Field(None, description="Items of this source in `recall`.")
    attribute: str | None = Field(None, description="Items by this feature of the item: id, multi_id or bucketized.")
    value: Value | None = Field(None, description="Value of the attribute, as in the item table.")

    @model_validator(mode="after")
    def _check_selection(self) -> Selection:
        faults = []
        if (self.source is None) == (self.attribute is None):
            faults.append("needs either source or attribute")
        if self.value is not None and self.attribute is None:
            faults.append("value belongs to attribute")
        faults += self._check_rule()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _check_rule(self) -> list[str]:
        return []


class Quota(Selection):
    """Least or most items of a selection on a page. An attribute without value is a quota of each of its values."""

    at_least: int | None = Field(None, gt=0, description="Least items, as far as there are candidates.")
    at_most: int | None = Field(None, ge=0, description="Most items. A page may get shorter by it.")

    def _check_rule(self) -> list[str]:
        faults = []
        if self.at_least is None and self.at_most is None:
            faults.append("needs at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            faults.append("at_least is above at_most")
        if self.at_least is not None and self.attribute is not None and self.value is None:
            faults.append("at_least needs the value of the attribute")
        return faults


class Slot(Selection):
    """A position of the page that is filled from a selection. Without a candidate of it, as any other position."""

    position: int = Field(gt=0, description="Position on the page, from 1.")

    def _check_rule(self) -> list[str]:
        return ["attribute needs a value"] if self.attribute is not None and self.value is None else []


class Cap(Strict):
    """Frequency cap: how often a user gets an item in a time."""

    at_most: int = Field(gt=0, description="Number of times after which an item is left out.")
    within: Duration = Field(description="Time before the request, such as `7d`. In a log of steps: number of steps.")
    counted: Literal["shown", "events"] = Field(
        "shown",
        description="What counts: `shown` by this pipeline (needs `log`), or `events` of the user in the history.",
    )


class MixConfig(Strict):
    """Rules for the page that is shown."""

    quotas: tuple[Quota, ...] = Field((), description="Least and most items of a source or an attribute's value.")
    slots: tuple[Slot, ...] = Field((), description="Positions that are filled from a source or an attribute's value.")
    caps: tuple[Cap, ...] = Field((), description="How often a user gets an item in a time.")

    @model_validator(mode="after")
    def _check_positions(self) -> MixConfig:
        positions = [slot.position for slot in self.slots]
        if len(set(positions)) < len(positions):
            raise ValueError("slots: each position once")
        return self

    def list_sources(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of the keys that name a source, with the name."""
        selections: dict[str, tuple[Selection, ...]] = {"quotas": self.quotas, "slots": self.slots}
        for section, own in selections.items():
            yield from ((f"{section}.{at}.source", one.source) for at, one in enumerate(own) if one.source is not None)

    def list_attributes(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of the keys that name an attribute, with the name."""
        selections: dict[str, tuple[Selection, ...]] = {"quotas": self.quotas, "slots": self.slots}
        for section, own in selections.items():
            yield from (
                (f"{section}.{at}.attribute", one.attribute) for at, one in enumerate(own) if one.attribute is not None
            )
