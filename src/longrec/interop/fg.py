"""The rules of EasyRec's feature generator (fg.json), converted to a schema.

    imported = read("fg.json")
    imported.features  # features by name
    imported.notes  # fields that are converted with changes, or not converted

Training and serving compute the rules from the raw columns of a row, so that the generator is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrec.config import parse
from longrec.errors import ConfigError, nearest
from longrec.features.schema import Schema
from longrec.interop import json_positions
from longrec.interop.easyrec_rows import ITEMS, LIKE_AN_ITEM, USERS
from longrec.interop.easyrec_section import Note, Reading
from longrec.interop.fg_entry import Entry
from longrec.interop.fg_features import Features
from longrec.interop.fg_fields import KINDS, OTHERS
from longrec.interop.fg_histories import Histories
from longrec.interop.json_positions import JsonDocument

SUFFIX = ".json"


@dataclass(frozen=True)
class ImportedGenerator:
    """A converted fg.json. Paths in it are ``Path`` objects until it is written.

    Attributes:
        source: path of the imported file.
        schema: the whole schema.
        rows: settings that the schema needs below ``data.log.rows``: packed cells, and the row number.
        notes: keys that are converted with changes, or not converted, in the order of the file.
        choices: how user, item and label were chosen, one line each.
    """

    source: Path
    schema: Mapping[str, Any]
    rows: Mapping[str, Any]
    notes: tuple[Note, ...]
    choices: tuple[str, ...]

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """Features of the schema by name."""
        result: Mapping[str, Mapping[str, Any]] = self.schema["features"]
        return result


def is_generator(path: object) -> bool:
    """Return True if the suffix of a path is that of an fg.json."""
    return isinstance(path, str | Path) and Path(path).suffix.lower() == SUFFIX


def read(path: str | Path, *, user: str | None = None, item: str | None = None) -> ImportedGenerator:
    """Read an fg.json.

    Args:
        user: column of the user. Default: a column with a usual name, else the row number.
        item: column of the item. Default: a column with a usual name.

    Raises:
        ConfigError: if the file has faults. All are listed, each with file, line and column.
    """
    path = Path(path)
    return read_document(json_positions.read(path), path, user=user, item=item)


def read_document(
    document: JsonDocument, path: Path, *, user: str | None = None, item: str | None = None
) -> ImportedGenerator:
    """Read a parsed file, see :func:`read`. ``path`` names it, and its paths are relative to that file."""
    return _Reader(document, path).read_schema(user, item)


class _Reader:
    """Converter of an fg.json, in the order of the dependencies."""

    def __init__(self, document: JsonDocument, path: Path) -> None:
        self.document, self.path, self.reading = document, path, Reading(str(path))
        for where in document.repeated:
            self.reading.fault(document.positions[where], f"{where[-1]} is written twice; expected once")
        self.top = Entry(self.reading, document, "the file")

    def read_schema(self, user: str | None, item: str | None) -> ImportedGenerator:
        entries, sequences = self._read_entries()
        reserves = self.top.get("reserves", default=[])
        theirs, candidates = _find_columns(entries)
        choices = []
        if user is None:
            user = next((name for name in USERS if name in [*theirs, *reserves]), None)
            number = "row" if user is None else None
            why = "by its name" if user else "no column names a user, so each row is a user of its own"
            user, why = user or "row", f"{why}; override with --user"
        else:
            number, why = None, "set by --user"
        choices.append(f"user: {user}, {why}")
        item, why = self._choose_item(item, [*candidates, *reserves], user)
        choices.append(f"item: {item}, {why}")
        features = Features(self.top, self.path.parent, user, item)
        for entry in entries:
            features.add(entry)
        histories = Histories(features)
        for sequence, steps in sequences:
            histories.add(sequence, steps)
        label, why = self._choose_label(reserves, {user, item, *theirs, *candidates})
        choices.append(f"label: {label}, {why}")
        for entry in (self.top, *entries, *(sequence for sequence, _ in sequences)):
            entry.settle()
        schema: dict[str, Any] = {"user": user, "item": item, "label": label, "features": features.convert_features()}
        rows: dict[str, Any] = {"packed": histories.packed} if histories.packed else {}
        if histories.settings:
            schema["histories"] = histories.settings
        else:
            # Without histories in the rows, the schema needs a timestamp: the row number.
            number = "row"
            schema["time"] = {"column": number, "unit": "step"}
        rows |= {"number": number} if number else {}
        self._check(schema)
        return ImportedGenerator(self.path, schema, rows, tuple(sorted(self.reading.notes)), tuple(choices))

    def _read_entries(self) -> tuple[list[Entry], list[tuple[Entry, list[Entry]]]]:
        """Return features, and sequences with the features of a step. Note those that are not converted."""
        features = self.top.get("features")
        if not isinstance(features, list) or not features:
            self.top.fault("features", "is missing or no list; expected the features")
            return [], []
        entries: list[Entry] = []
        sequences: list[tuple[Entry, list[Entry]]] = []
        for number, one in enumerate(features):
            path: tuple[str | int, ...] = ("features", number)
            if isinstance(one, dict) and "sequence_name" in one:
                sequence = Entry(self.reading, self.document, "sequence", path)
                inner = sequence.get("features")
                if not isinstance(inner, list) or not inner:
                    sequence.fault("features", "is missing or no list; expected the features of a step")
                    inner = []
                steps = [self._read_entry((*path, "features", index), step) for index, step in enumerate(inner)]
                sequences.append((sequence, [step for step in steps if step is not None]))
                continue
            entry = self._read_entry(path, one)
            if entry is not None:
                entries.append(entry)
        return entries, sequences

    def _read_entry(self, path: tuple[str | int, ...], one: Any) -> Entry | None:
        """Return a feature of a kind that can be converted, else None."""
        kind = one.get("feature_type") if isinstance(one, dict) else ""
        if isinstance(kind, str) and kind in KINDS and kind != "sequence" and kind != "the file":
            return Entry(self.reading, self.document, kind, path)
        entry = Entry(self.reading, self.document, "id_feature", path)
        if isinstance(one, dict) and isinstance(kind, str) and kind in OTHERS:
            entry.note_whole("not carried", f"{one.get('feature_name', '')} is a {kind}: {OTHERS[kind]}")
        elif isinstance(one, dict):
            near = nearest(kind, [*KINDS, *OTHERS]) if isinstance(kind, str) else None
            kinds = ", ".join(name for name in KINDS if name.endswith("_feature"))
            hint = f"did you mean {near!r}?" if near else f"known: {kinds}, or sequence_name"
            entry.fault("feature_type", f"is {kind!r}, which is no type of a feature; {hint}")
        return None

    def _choose_item(self, item: str | None, free: list[str], user: str) -> tuple[str, str]:
        if item is not None:
            return item, "set by --item"
        names = [*ITEMS, *sorted(name for name in free if LIKE_AN_ITEM.search(name))]
        column = next((name for name in names if name in free and name != user), None)
        if column is None:
            columns = ", ".join(dict.fromkeys(free)) or "none"
            description = f"has no column that names the item by a usual name; set it with --item COLUMN: {columns}"
            self.top.fault("features", description)
        return column or "item", "by its name; override with --item"

    def _choose_label(self, reserves: list[str], read: set[str]) -> tuple[str, str]:
        """Return the first of ``label_fields``, else the one reserved column that nothing else reads."""
        labels = self.top.get("label_fields", default=[])
        if len(labels) > 1:
            self.top.note("label_fields", "differs", f"{labels[0]} is the label; {', '.join(labels[1:])} is not read")
        if labels:
            return labels[0], "the first of label_fields"
        rest = [name for name in dict.fromkeys(reserves) if name not in read]
        if len(rest) != 1:
            reason = f"{', '.join(rest)} of reserves may be the label" if rest else "no column can be the label"
            self.top.fault("label_fields", f'is missing, and {reason}; add "label_fields": ["COLUMN"]')
            return "label", ""
        return rest[0], "the only column of reserves that nothing else reads"

    def _check(self, schema: Mapping[str, Any]) -> None:
        """Raise all faults. Those of the schema are raised only when the file itself has none."""
        if self.reading.faults:
            raise self.reading.error()
        plain = {
            **schema,
            "features": {
                name: {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
                for name, settings in schema["features"].items()
            },
        }
        try:
            parse(Schema, plain, str(self.path))
        except ConfigError as error:
            raise ConfigError(str(self.path), self.reading.locate(error.faults)) from None


def _find_columns(entries: list[Entry]) -> tuple[list[str], list[str]]:
    """Return the columns that rules read, of the user and of the candidate. Faults are added where they are used."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for entry in entries:
        for key in ("expression", "map", "key", "user", "item", "category"):
            value = entry.values.get(key)
            for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
                side, _, column = str(text).partition(":")
                if column:
                    sides[side == "user"].append(column)
    return sides[True], sides[False]
