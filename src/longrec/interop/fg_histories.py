"""Conversion of the sequences of an fg.json to histories: packed cells whose steps hold several features."""

from __future__ import annotations

import re
from typing import Any

from longrec.interop.fg_entry import Entry
from longrec.interop.fg_features import Features

_ALL = 1_000_000
"""Length of a sequence without ``sequence_length``: all its events."""


class Histories:
    """Histories by name, and the packed form of their cells.

    A step of the generator's offline rows is written ``item__item_id:11#item__price:2.0``: the side of the column, two
    underscores, the column.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.settings: dict[str, dict[str, Any]] = {}
        self.packed: dict[str, dict[str, Any]] = {}

    def add(self, sequence: Entry, steps: list[Entry]) -> None:
        """Add a sequence. A feature of its steps is converted if a feature of the candidate reads the same column."""
        name = re.sub(r"[^\w-]", "_", sequence.get("sequence_name", default=""))
        column = sequence.get("sequence_column", default=name) or name
        if not name:
            sequence.fault("sequence_name", "is missing or empty; expected the name of the sequence")
            return
        if name in self.settings or column in self.packed:
            sequence.fault("sequence_name", f"gives a second sequence the name {name!r}; expected distinct names")
            return
        last = sequence.get("sequence_length", default=_ALL) or _ALL
        packed: dict[str, Any] = {
            "into": {},
            "step": sequence.get("sequence_delim", default=";"),
            "feature": sequence.get("attribute_delim", default="#"),
        }
        history: dict[str, Any] = {"features": [], "columns": {}, "max_length": last}
        ignored: list[str] = []
        for step in steps:
            read = self._match_step(step, name)
            if read is None:
                continue
            inside, ours = read
            if ours is None:
                ignored.append(inside)
            elif ours not in history["columns"]:
                history["features"].append(ours)
                history["columns"][ours] = packed["into"][inside] = f"{column}__{ours}"
        if not history["features"]:
            explanation = f"no feature of the candidate reads a column of its steps, so {name} is left out"
            sequence.note("features", "not carried", explanation)
            return
        if ignored:
            packed["ignore"] = ignored
        self.settings[name], self.packed[column] = history, packed
        sequence.reading.origins[f"histories.{name}"] = sequence.position
        for key, field in (("max_length", "sequence_length"), ("columns", "features")):
            sequence.reading.origins[f"histories.{name}.{key}"] = sequence.position_of(field)

    def _match_step(self, step: Entry, name: str) -> tuple[str, str | None] | None:
        """Return the name of a step's feature inside the cell, and the candidate's feature of the same column."""
        if step.kind not in ("id_feature", "raw_feature"):
            step.note_whole("not carried", f"{step.kind} is not computed for the steps of {name}")
            return None
        sides = self.features.read_columns(step, "expression")
        if not sides:
            return None
        side, column = sides[0]
        inside = f"{side}__{column}"
        ours = self.features.find_reader(column) if side != "user" else None
        if ours is None:
            explanation = f"no id or bucketized feature of the candidate reads {column}; add one to have it in {name}"
            step.note_whole("not carried", explanation)
            return inside, None
        step.note_whole("differs", f"the steps of {name} are encoded as {ours} is, and share its table")
        return inside, ours
