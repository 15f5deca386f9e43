"""The features of an fg.json in the words of the schema: id, raw, combo and lookup features."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from longrec.errors import nearest
from longrec.features.fields import RESERVED_NAMES
from longrec.interop.fg_entry import Entry

_BETWEEN = "\x1d"
"""What parts several values of a cell unless the file says otherwise: the group separator of ASCII."""
_SIDES = ("user", "item", "context")
_LOG = ("tf.math.log1p", "tf.log1p", "math.log1p", "log1p")
_POOLS = ("sum", "mean", "max")
_ENCODINGS = ("hash_bucket_size", "vocab_list", "vocab_file", "vocab_dict", "num_buckets")
_LARGEST_HASH = 2**31 - 3


class Features:
    """Features by name, in the order of the file.

    Args:
        folder: where paths of vocabularies start.
        user, item: columns of the keys; features of them belong to them by themselves.
    """

    def __init__(self, top: Entry, folder: Path, user: str, item: str) -> None:
        self.folder, self.keys = folder, (user, item)
        self.dim = top.get("embedding_dim", default=0)
        self.between = top.get("multi_val_sep", default=_BETWEEN) or _BETWEEN
        self.weight = top.get("kv_separator")
        self._made: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, str] = {}
        self._reads: dict[str, str] = {}
        self._origins = top.reading.origins

    def words(self) -> dict[str, dict[str, Any]]:
        """The features of the schema."""
        order = ("kind", "table", "column")
        return {
            name: {key: words[key] for key in (*order, *words) if key in words} for name, words in self._made.items()
        }

    def reading_column(self, column: str) -> str | None:
        """The id or bucket of the candidate that reads a column."""
        return self._reads.get(column)

    def columns(self, entry: Entry, key: str) -> list[tuple[str, str]]:
        """Whose column and which, of every ``side:column`` of a key; none, with a fault or a note, where one is odd."""
        given = entry.get(key)
        if not given:
            entry.fault(key, "is missing; expected user:COLUMN, item:COLUMN or context:COLUMN")
            return []
        made = []
        for text in [given] if isinstance(given, str) else given:
            side, colon, column = str(text).partition(":")
            if side in ("feature", "const") and colon:
                what = "what another feature makes" if side == "feature" else "a constant"
                entry.note(
                    key, "not carried", f"{text} is {what}; a feature reads columns of the row, so it is left out"
                )
                return []
            if side not in _SIDES or not column:
                entry.fault(key, f"is {text!r}; expected user:COLUMN, item:COLUMN or context:COLUMN")
                return []
            made.append((side, column))
        return made

    def add(self, entry: Entry) -> None:
        """Take a feature, and the cross that it may ask for besides."""
        given = entry.get("feature_name", default="")
        name = re.sub(r"[^\w-]", "_", given)
        name = f"{name}_feature" if name in RESERVED_NAMES else name
        if not name:
            entry.fault("feature_name", "is missing or empty; expected the name of the feature")
            return
        if name in self._made:
            entry.fault("feature_name", f"gives a second feature the name {given!r}; expected distinct names")
            return
        if entry.get("stub_type", default=False):
            entry.note("stub_type", "not carried", f"{given} is there for other features only, so it is left out")
            return
        kinds = {
            "id_feature": self._id, "raw_feature": self._raw, "combo_feature": self._combo,
            "lookup_feature": self._lookup, "match_feature": self._match,
        }  # fmt: skip
        words = kinds[entry.kind](entry, name)
        if words is None:
            return
        self._made[name] = words
        origin = f"features.{name}"
        self._origins[origin] = entry.place
        for key, keys in _ORIGINS.items():
            told = next((key for key in keys if entry.has(key)), None)
            if told is not None:
                self._origins[f"{origin}.{key}"] = entry.at(told)
        if entry.kind == "id_feature" and entry.has("extra_combo_info"):
            self._extra(entry, name)

    # ---- kinds ----

    def _column(self, entry: Entry, name: str) -> dict[str, Any] | None:
        """Whose column it reads, and which."""
        sides = self.columns(entry, "expression")
        if not sides:
            return None
        side, column = sides[0]
        words: dict[str, Any] = {}
        if side != "user" and column not in self.keys:
            words["table"] = "candidate"
        if column != name:
            words["column"] = column
        return words

    def _id(self, entry: Entry, name: str) -> dict[str, Any] | None:
        words = self._column(entry, name)
        if words is None:
            return None
        pair = ":" if entry.get("weighted", default=False) else entry.get("kv_separator", default=None)
        several = entry.get("is_multi", default=False) or entry.get("value_dim", default=1) == 0 or bool(pair)
        pool = entry.get("combiner", default="sum")
        if several:
            words |= {"kind": "multi", **self._encoded(entry, name), "separator": self._between(entry)}
            if pool not in _POOLS:
                entry.fault("combiner", f"is {pool!r}; expected {', '.join(_POOLS)}")
            words["pool"] = pool
            if pair or self.weight:
                words["weight_separator"] = pair or self.weight
        else:
            words |= {"kind": "id", **self._encoded(entry, name)}
            if words.get("table") or words.get("column", name) == self.keys[1]:
                self._reads.setdefault(words.get("column", name), name)
            entry.get("separator")
        entry.get("value_dimension")
        self._null(entry)
        return words

    def _raw(self, entry: Entry, name: str) -> dict[str, Any] | None:
        words = self._column(entry, name)
        if words is None:
            return None
        words |= self._number(entry, name)
        width = entry.get("value_dimension", "value_dim", default=1)
        several = entry.get("is_multi", default=False)
        entry.get("separator")
        if words["kind"] == "bucket":
            if width > 1 or several:
                entry.note("feature_type", "differs", "one number a row is cut into buckets")
            if words.get("table"):
                self._reads.setdefault(words.get("column", name), name)
        elif width > 1:
            if words.get("scale", "log") != "log":
                del words["scale"]
                entry.note("normalizer", "not carried", "several numbers are not scaled by what is fitted")
            words |= {"width": width, "separator": self._between(entry)}
        return words

    def _combo(self, entry: Entry, name: str) -> dict[str, Any] | None:
        sides = self.columns(entry, "expression")
        if not sides:
            return None
        entry.get("separator")
        self._null(entry)
        if len(sides) == 1:
            return {**(self._column(entry, name) or {}), "kind": "id", **self._encoded(entry, name)}
        return self._crossed(entry, name, sides)

    def _crossed(self, entry: Entry, name: str, sides: list[tuple[str, str]]) -> dict[str, Any]:
        columns = list(dict.fromkeys(column for _, column in sides))
        encoded = self._encoded(entry, name)
        if "hash" not in encoded:
            entry.fault("hash_bucket_size", f"of {name} is missing; expected the number of buckets of a cross")
        if any(side != "user" for side, _ in sides):
            encoded["table"] = "candidate"
        return {"kind": "cross", "of": columns, **{k: v for k, v in encoded.items() if k in ("hash", "dim", "table")}}

    def _lookup(self, entry: Entry, name: str) -> dict[str, Any] | None:
        maps, keys = self.columns(entry, "map"), self.columns(entry, "key")
        if not maps or not keys:
            return None
        words: dict[str, Any] = {"kind": "lookup", "map": maps[0][1], "key": keys[0][1], "separator": self.between}
        if maps[0][0] != "user" or keys[0][0] != "user":
            words["table"] = "candidate"
        entry.get("expression")
        entry.get("separator")
        return self._found(entry, name, words, "key")

    def _match(self, entry: Entry, name: str) -> dict[str, Any] | None:
        told = {"user": "map", "item": "key"} | (
            {} if entry.values.get("category") == "ALL" else {"category": "outer_key"}
        )
        if entry.get("matchType", default="hit") != "hit" or entry.values.get("item") == "ALL":
            entry.note_whole("not carried", f"{name} matches many values; a lookup takes one")
            return None
        sides = {key: self.columns(entry, key) for key in told}
        entry.get("category")
        if not all(sides.values()):
            return None
        words: dict[str, Any] = {"kind": "lookup", **{told[key]: found[0][1] for key, found in sides.items()}}
        words |= {"separator": ",", "outer_separator": "|"}
        if any(found[0][0] != "user" for found in sides.values()):
            words["table"] = "candidate"
        entry.get("separator")
        return self._found(entry, name, words, "item")

    def _found(self, entry: Entry, name: str, words: dict[str, Any], key: str) -> dict[str, Any]:
        """What a value looked up becomes."""
        discrete = entry.get("needDiscrete", "need_discrete", default=True)
        if discrete and not entry.has("needKey", "need_key", "show_item"):
            entry.note(key, "differs", "the value alone is looked up, its key is not part of the id")
        if discrete:
            self._null(entry)
            return words | {"as": "id", **self._encoded(entry, name)}
        number = self._number(entry, name)
        number["as"] = number.pop("kind")
        return words | number

    def _extra(self, entry: Entry, name: str) -> None:
        """The cross that ``extra_combo_info`` asks for."""
        info = entry.get("extra_combo_info")
        others = info.get("feature_names") if isinstance(info, dict) else None
        hashed = info.get("hash_bucket_size") if isinstance(info, dict) else None
        if not isinstance(others, list) or not others or not isinstance(hashed, int):
            entry.fault("extra_combo_info", "is not whole; expected an object with feature_names and hash_bucket_size")
            return
        unknown = [other for other in others if self._made.get(str(other), {}).get("kind") != "id"]
        if unknown:
            near = nearest(str(unknown[0]), self._made)
            hint = f"did you mean {near!r}?" if near else "expected id features that stand before it"
            entry.fault("extra_combo_info", f"names {unknown[0]!r}, which is no id feature before it; {hint}")
            return
        names = [name, *others]
        made: dict[str, Any] = {
            "kind": "cross",
            "of": list(dict.fromkeys(self._made[one].get("column", one) for one in names)),
            "hash": hashed,
        }
        if any(self._made[one].get("table") or self._made[one].get("column", one) == self.keys[1] for one in names):
            made["table"] = "candidate"
        dim = info.get("embedding_dimension", info.get("embedding_dim", self.dim))
        ours = re.sub(r"[^\w-]", "_", str(info.get("final_feature_name", "combo__" + "_".join(names))))
        self._made[ours] = made | ({"dim": dim} if dim else {})
        self._origins[f"features.{ours}"] = entry.at("extra_combo_info")

    # ---- parts ----

    def _between(self, entry: Entry) -> str:
        told: str = entry.get("separator", default=self.between) or self.between
        return told

    def _null(self, entry: Entry) -> None:
        entry.get("default_value")

    def _dim(self, entry: Entry) -> dict[str, Any]:
        dim = entry.get("embedding_dimension", "embedding_dim", default=self.dim)
        return {"dim": dim} if dim else {}

    def _encoded(self, entry: Entry, name: str) -> dict[str, Any]:
        """How values become ids: another feature's, hashed, a given vocabulary, or a learnt one; and the width."""
        given = {key: entry.get(key) for key in _ENCODINGS}
        written = [key for key, value in given.items() if value]
        dim = self._dim(entry)
        if len(written) > 1:
            entry.fault(written[1], f"stands beside {written[0]}; expected one of the two")
        elif not written:
            entry.note("feature_name", "differs", f"nothing says how values become ids: {name} learns its vocabulary")
        shared = entry.get("shared_name")
        if shared:
            owner = self._tables.setdefault(shared, name)
            if owner != name:
                return {"share": owner, **dim}
        if given["hash_bucket_size"]:
            hashed = min(given["hash_bucket_size"], _LARGEST_HASH)
            if hashed < given["hash_bucket_size"]:
                entry.note("hash_bucket_size", "differs", f"at most {_LARGEST_HASH} buckets")
            return {"hash": hashed, **dim}
        if given["vocab_list"] or given["vocab_dict"]:
            return {"vocab": list(given["vocab_list"] or given["vocab_dict"]), **dim}
        if given["vocab_file"]:
            file = given["vocab_file"]
            return {"vocab": file if "://" in file else self.folder / file, **dim}
        return dim

    def _number(self, entry: Entry, name: str) -> dict[str, Any]:
        """A number: as it is, scaled, or cut into buckets."""
        method, settings = self._normalizer(entry)
        edges = entry.get("boundaries", "bucketize_boundaries")
        missing = _as_float(entry.get("default_value"))
        if edges:
            made = sorted({_undone(edge, method, settings) for edge in edges})
            if not all(map(math.isfinite, made)):
                entry.fault("boundaries", "are beyond all numbers before normalizer; expected the edges of numbers")
            return {"kind": "bucket", "edges": [_plain(edge) for edge in made], **self._dim(entry)}
        words: dict[str, Any] = {"kind": "dense"}
        scale = {"zscore": "standard", "minmax": "minmax", "log10": "log", "log1p": "log"}.get(method)
        if scale:
            words["scale"] = scale
        if missing:
            words["missing"] = _plain(missing)
        return words | (self._dim(entry) if entry.has("embedding_dim", "embedding_dimension") else {})

    def _normalizer(self, entry: Entry) -> tuple[str, dict[str, float]]:
        """The method of ``normalizer`` and its settings; ``normalizer_fn`` is a name only."""
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
        numbers = {key: _as_float(value) for key, value in pairs.items() if key != "method"}
        odd = next((key for key, value in numbers.items() if value is None), None)
        if odd is not None:
            entry.fault("normalizer", f"says {odd}={pairs[odd]}; expected a number")
        return method, {key: value for key, value in numbers.items() if value is not None}


_ORIGINS = {
    "hash": ("hash_bucket_size",),
    "vocab": ("vocab_list", "vocab_dict", "vocab_file"),
    "edges": ("boundaries", "bucketize_boundaries"),
    "dim": ("embedding_dimension", "embedding_dim"),
    "separator": ("separator",),
    "column": ("expression",),
    "of": ("expression",),
    "share": ("shared_name",),
    "width": ("value_dimension", "value_dim"),
}


def _as_float(value: Any) -> float | None:
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return made if math.isfinite(made) else None


def _undone(edge: float, method: str, settings: dict[str, float]) -> float:
    """An edge of normalised numbers as an edge of the numbers themselves."""
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


def _plain(number: float) -> int | float:
    """A whole number as such, as a person would write it."""
    return int(number) if number == int(number) and abs(number) < 1e15 else number
