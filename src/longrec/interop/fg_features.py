"""Conversion of the features of an fg.json to features of the schema: id, raw, combo, lookup and match features."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from longrec.errors import nearest
from longrec.features.fields import RESERVED_NAMES
from longrec.interop.fg_entry import Entry

_SEPARATOR = "\x1d"
"""Default separator of several values in a cell: the group separator of ASCII."""
_SIDES = ("user", "item", "context")
_LOG = ("tf.math.log1p", "tf.log1p", "math.log1p", "log1p")
_POOLS = ("sum", "mean", "max")
_ENCODINGS = ("hash_bucket_size", "vocab_list", "vocab_file", "vocab_dict", "num_buckets")
_LARGEST_HASH = 2**31 - 3


class Features:
    """Features by name, in the order of the file.

    Args:
        folder: base folder of the paths of vocabularies.
        user, item: columns of the keys. Features of them are user and item features without further settings.
    """

    def __init__(self, top: Entry, folder: Path, user: str, item: str) -> None:
        self.folder, self.keys = folder, (user, item)
        self.dim = top.get("embedding_dim", default=0)
        self.default_separator = top.get("multi_val_sep", default=_SEPARATOR) or _SEPARATOR
        self.weight = top.get("kv_separator")
        self._features: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, str] = {}
        self._reads: dict[str, str] = {}
        self._origins = top.reading.origins

    def convert_features(self) -> dict[str, dict[str, Any]]:
        """Return the features of the schema."""
        order = ("kind", "side", "column")
        return {
            name: {key: settings[key] for key in (*order, *settings) if key in settings}
            for name, settings in self._features.items()
        }

    def find_reader(self, column: str) -> str | None:
        """Return the name of the candidate's id or bucketized feature that reads a column."""
        return self._reads.get(column)

    def read_columns(self, entry: Entry, key: str) -> list[tuple[str, str]]:
        """Return side and column of each ``side:column`` of a key. Empty, with a fault or note, if one is invalid."""
        sources = entry.get(key)
        if not sources:
            entry.fault(key, "is missing; expected user:COLUMN, item:COLUMN or context:COLUMN")
            return []
        pairs = []
        for text in [sources] if isinstance(sources, str) else sources:
            side, colon, column = str(text).partition(":")
            if side in ("feature", "const") and colon:
                what = "the output of another feature" if side == "feature" else "a constant"
                entry.note(
                    key, "not carried", f"{text} is {what}; a feature reads columns of the row, so it is left out"
                )
                return []
            if side not in _SIDES or not column:
                entry.fault(key, f"is {text!r}; expected user:COLUMN, item:COLUMN or context:COLUMN")
                return []
            pairs.append((side, column))
        return pairs

    def add(self, entry: Entry) -> None:
        """Add a feature, and the cross of its ``extra_combo_info``."""
        raw_name = entry.get("feature_name", default="")
        name = re.sub(r"[^\w-]", "_", raw_name)
        name = f"{name}_feature" if name in RESERVED_NAMES else name
        if not name:
            entry.fault("feature_name", "is missing or empty; expected the name of the feature")
            return
        if name in self._features:
            entry.fault("feature_name", f"gives a second feature the name {raw_name!r}; expected distinct names")
            return
        if entry.get("stub_type", default=False):
            entry.note("stub_type", "not carried", f"only other features use {raw_name}, so it is left out")
            return
        kinds = {
            "id_feature": self._convert_id, "raw_feature": self._convert_raw, "combo_feature": self._convert_combo,
            "lookup_feature": self._convert_lookup, "match_feature": self._convert_match,
        }  # fmt: skip
        settings = kinds[entry.kind](entry, name)
        if settings is None:
            return
        self._features[name] = settings
        origin = f"features.{name}"
        self._origins[origin] = entry.position
        for key, keys in _ORIGINS.items():
            spelling = next((key for key in keys if entry.has(key)), None)
            if spelling is not None:
                self._origins[f"{origin}.{key}"] = entry.position_of(spelling)
        if entry.kind == "id_feature" and entry.has("extra_combo_info"):
            self._add_extra_cross(entry, name)

    # ---- kinds ----

    def _convert_column(self, entry: Entry, name: str) -> dict[str, Any] | None:
        """Convert side and column of the ``expression``."""
        sides = self.read_columns(entry, "expression")
        if not sides:
            return None
        side, column = sides[0]
        settings: dict[str, Any] = {}
        if side != "user" and column not in self.keys:
            settings["side"] = "candidate"
        if column != name:
            settings["column"] = column
        return settings

    def _convert_id(self, entry: Entry, name: str) -> dict[str, Any] | None:
        settings = self._convert_column(entry, name)
        if settings is None:
            return None
        pair = ":" if entry.get("weighted", default=False) else entry.get("kv_separator", default=None)
        several = entry.get("is_multi", default=False) or entry.get("value_dim", default=1) == 0 or bool(pair)
        pool = entry.get("combiner", default="sum")
        if several:
            settings |= {
                "kind": "multi_id",
                **self._convert_encoding(entry, name),
                "separator": self._read_separator(entry),
            }
            if pool not in _POOLS:
                entry.fault("combiner", f"is {pool!r}; expected {', '.join(_POOLS)}")
            settings["pool"] = pool
            if pair or self.weight:
                settings["weight_separator"] = pair or self.weight
        else:
            settings |= {"kind": "id", **self._convert_encoding(entry, name)}
            if settings.get("side") or settings.get("column", name) == self.keys[1]:
                self._reads.setdefault(settings.get("column", name), name)
            entry.get("separator")
        entry.get("value_dimension")
        self._read_default(entry)
        return settings

    def _convert_raw(self, entry: Entry, name: str) -> dict[str, Any] | None:
        settings = self._convert_column(entry, name)
        if settings is None:
            return None
        settings |= self._convert_number(entry, name)
        width = entry.get("value_dimension", "value_dim", default=1)
        several = entry.get("is_multi", default=False)
        entry.get("separator")
        if settings["kind"] == "bucketized":
            if width > 1 or several:
                entry.note("feature_type", "differs", "one number per row is bucketized")
            if settings.get("side"):
                self._reads.setdefault(settings.get("column", name), name)
        elif width > 1:
            if settings.get("scale", "log") != "log":
                del settings["scale"]
                entry.note("normalizer", "not carried", "several numbers are not scaled by fitted statistics")
            settings |= {"width": width, "separator": self._read_separator(entry)}
        return settings

    def _convert_combo(self, entry: Entry, name: str) -> dict[str, Any] | None:
        sides = self.read_columns(entry, "expression")
        if not sides:
            return None
        entry.get("separator")
        self._read_default(entry)
        if len(sides) == 1:
            return {**(self._convert_column(entry, name) or {}), "kind": "id", **self._convert_encoding(entry, name)}
        return self._convert_cross(entry, name, sides)

    def _convert_cross(self, entry: Entry, name: str, sides: list[tuple[str, str]]) -> dict[str, Any]:
        columns = list(dict.fromkeys(column for _, column in sides))
        encoded = self._convert_encoding(entry, name)
        if "hash" not in encoded:
            entry.fault("hash_bucket_size", f"of {name} is missing; expected the number of buckets of a cross")
        if any(side != "user" for side, _ in sides):
            encoded["side"] = "candidate"
        return {
            "kind": "cross",
            "features": columns,
            **{k: v for k, v in encoded.items() if k in ("hash", "dim", "side")},
        }

    def _convert_lookup(self, entry: Entry, name: str) -> dict[str, Any] | None:
        maps, keys = self.read_columns(entry, "map"), self.read_columns(entry, "key")
        if not maps or not keys:
            return None
        settings: dict[str, Any] = {
            "kind": "lookup",
            "map": maps[0][1],
            "key": keys[0][1],
            "separator": self.default_separator,
        }
        if maps[0][0] != "user" or keys[0][0] != "user":
            settings["side"] = "candidate"
        entry.get("expression")
        entry.get("separator")
        return self._convert_lookup_value(entry, name, settings, "key")

    def _convert_match(self, entry: Entry, name: str) -> dict[str, Any] | None:
        targets = {"user": "map", "item": "key"} | (
            {} if entry.values.get("category") == "ALL" else {"category": "outer_key"}
        )
        if entry.get("matchType", default="hit") != "hit" or entry.values.get("item") == "ALL":
            entry.note_whole("not carried", f"{name} matches many values; a lookup takes one")
            return None
        sides = {key: self.read_columns(entry, key) for key in targets}
        entry.get("category")
        if not all(sides.values()):
            return None
        settings: dict[str, Any] = {"kind": "lookup", **{targets[key]: columns[0][1] for key, columns in sides.items()}}
        settings |= {"separator": ",", "outer_separator": "|"}
        if any(columns[0][0] != "user" for columns in sides.values()):
            settings["side"] = "candidate"
        entry.get("separator")
        return self._convert_lookup_value(entry, name, settings, "item")

    def _convert_lookup_value(self, entry: Entry, name: str, settings: dict[str, Any], key: str) -> dict[str, Any]:
        """Convert the encoding of a value that was looked up."""
        discrete = entry.get("needDiscrete", "need_discrete", default=True)
        if discrete and not entry.has("needKey", "need_key", "show_item"):
            entry.note(key, "differs", "the value alone is looked up, its key is not part of the id")
        if discrete:
            self._read_default(entry)
            return settings | {"as": "id", **self._convert_encoding(entry, name)}
        number = self._convert_number(entry, name)
        number["as"] = number.pop("kind")
        return settings | number

    def _add_extra_cross(self, entry: Entry, name: str) -> None:
        """Add the cross of ``extra_combo_info``."""
        info = entry.get("extra_combo_info")
        others = info.get("feature_names") if isinstance(info, dict) else None
        hashed = info.get("hash_bucket_size") if isinstance(info, dict) else None
        if not isinstance(others, list) or not others or not isinstance(hashed, int):
            entry.fault("extra_combo_info", "is incomplete; expected an object with feature_names and hash_bucket_size")
            return
        unknown = [other for other in others if self._features.get(str(other), {}).get("kind") != "id"]
        if unknown:
            near = nearest(str(unknown[0]), self._features)
            hint = f"did you mean {near!r}?" if near else "expected id features before it"
            entry.fault("extra_combo_info", f"names {unknown[0]!r}, which is no id feature before it; {hint}")
            return
        names = [name, *others]
        cross: dict[str, Any] = {
            "kind": "cross",
            "features": list(dict.fromkeys(self._features[one].get("column", one) for one in names)),
            "hash": hashed,
        }
        if any(
            self._features[one].get("side") or self._features[one].get("column", one) == self.keys[1] for one in names
        ):
            cross["side"] = "candidate"
        dim = info.get("embedding_dimension", info.get("embedding_dim", self.dim))
        ours = re.sub(r"[^\w-]", "_", str(info.get("final_feature_name", "combo__" + "_".join(names))))
        self._features[ours] = cross | ({"dim": dim} if dim else {})
        self._origins[f"features.{ours}"] = entry.position_of("extra_combo_info")

    # ---- shared by the kinds ----

    def _read_separator(self, entry: Entry) -> str:
        separator: str = entry.get("separator", default=self.default_separator) or self.default_separator
        return separator

    def _read_default(self, entry: Entry) -> None:
        entry.get("default_value")

    def _convert_dim(self, entry: Entry) -> dict[str, Any]:
        dim = entry.get("embedding_dimension", "embedding_dim", default=self.dim)
        return {"dim": dim} if dim else {}

    def _convert_encoding(self, entry: Entry, name: str) -> dict[str, Any]:
        """Convert the width, and the encoding of ids: another feature's, hashed, listed, or a learned vocabulary."""
        encodings = {key: entry.get(key) for key in _ENCODINGS}
        written = [key for key, value in encodings.items() if value]
        dim = self._convert_dim(entry)
        if len(written) > 1:
            entry.fault(written[1], f"conflicts with {written[0]}; expected one of the two")
        elif not written:
            entry.note("feature_name", "differs", f"no encoding of ids is set: {name} learns its vocabulary")
        shared = entry.get("shared_name")
        if shared:
            owner = self._tables.setdefault(shared, name)
            if owner != name:
                return {"share": owner, **dim}
        if encodings["hash_bucket_size"]:
            hashed = min(encodings["hash_bucket_size"], _LARGEST_HASH)
            if hashed < encodings["hash_bucket_size"]:
                entry.note("hash_bucket_size", "differs", f"at most {_LARGEST_HASH} buckets")
            return {"hash": hashed, **dim}
        if encodings["vocab_list"] or encodings["vocab_dict"]:
            return {"vocab": list(encodings["vocab_list"] or encodings["vocab_dict"]), **dim}
        if encodings["vocab_file"]:
            file = encodings["vocab_file"]
            return {"vocab": file if "://" in file else self.folder / file, **dim}
        return dim

    def _convert_number(self, entry: Entry, name: str) -> dict[str, Any]:
        """Convert a number: as it is, scaled, or bucketized."""
        method, options = self._read_normalizer(entry)
        edges = entry.get("boundaries", "bucketize_boundaries")
        missing = _parse_float(entry.get("default_value"))
        if edges:
            raw_edges = sorted({_denormalize(edge, method, options) for edge in edges})
            if not all(map(math.isfinite, raw_edges)):
                entry.fault("boundaries", "are beyond all numbers before normalizer; expected the edges of numbers")
            return {"kind": "bucketized", "edges": [_simplify(edge) for edge in raw_edges], **self._convert_dim(entry)}
        settings: dict[str, Any] = {"kind": "numeric"}
        scale = {"zscore": "standard", "minmax": "minmax", "log10": "log", "log1p": "log"}.get(method)
        if scale:
            settings["scale"] = scale
        if missing:
            settings["missing"] = _simplify(missing)
        return settings | (self._convert_dim(entry) if entry.has("embedding_dim", "embedding_dimension") else {})

    def _read_normalizer(self, entry: Entry) -> tuple[str, dict[str, float]]:
        """Return the method of ``normalizer`` and its settings.

        Of ``normalizer_fn`` the file holds only the name of a function, so only logarithms are converted.
        """
        function = entry.get("normalizer_fn")
        if function in _LOG:
            return "log1p", {}
        if function is not None:
            entry.note("normalizer_fn", "not carried", f"{function} is not applied; apply it in the rows")
        text = entry.get("normalizer", default="")
        pairs = dict(piece.strip().partition("=")[::2] for piece in text.split(",") if "=" in piece)
        method = pairs.get("method", "")
        if method == "expression":
            entry.note("normalizer", "not carried", "expressions are not computed; apply it in the rows")
            return "", {}
        if text and method not in ("zscore", "minmax", "log10"):
            entry.fault("normalizer", f"is {text!r}; expected method=zscore, method=minmax or method=log10")
            return "", {}
        numbers = {key: _parse_float(value) for key, value in pairs.items() if key != "method"}
        odd = next((key for key, value in numbers.items() if value is None), None)
        if odd is not None:
            entry.fault("normalizer", f"has {odd}={pairs[odd]}; expected a number")
        return method, {key: value for key, value in numbers.items() if value is not None}


_ORIGINS = {
    "hash": ("hash_bucket_size",),
    "vocab": ("vocab_list", "vocab_dict", "vocab_file"),
    "edges": ("boundaries", "bucketize_boundaries"),
    "dim": ("embedding_dimension", "embedding_dim"),
    "separator": ("separator",),
    "column": ("expression",),
    "features": ("expression",),
    "share": ("shared_name",),
    "width": ("value_dimension", "value_dim"),
}


def _parse_float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _denormalize(edge: float, method: str, settings: dict[str, float]) -> float:
    """Convert an edge of normalized numbers to an edge of the raw numbers."""
    if method == "zscore":
        return edge * settings.get("standard_deviation", 1.0) + settings.get("mean", 0.0)
    if method == "minmax":
        low = settings.get("min", 0.0)
        return low + edge * (settings.get("max", 1.0) - low)
    if method == "log1p":
        return math.expm1(edge) if edge < 700 else math.inf
    if method == "log10":
        return 10.0**edge if edge < 300 else math.inf
    return edge


def _simplify(number: float) -> int | float:
    """Return a whole number as an int."""
    return int(number) if number == int(number) and abs(number) < 1e15 else number
