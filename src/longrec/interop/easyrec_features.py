"""Conversion of EasyRec's features to features of the schema: kind, encoding and side of each column."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longrec.errors import nearest
from longrec.features.fields import RESERVED_NAMES
from longrec.interop.easyrec_rows import Rows, expand_range
from longrec.interop.easyrec_section import Section

_LOG = ("tf.math.log1p", "tf.log1p", "math.log1p", "log1p")
_COMPOSED = ("ComboFeature", "LookupFeature")
_POOLS = {"sum": "sum", "mean": "mean", "max": "max", "sqrtn": "mean"}


@dataclass
class Spec:
    """One feature of an EasyRec configuration.

    Attributes:
        name: its name in EasyRec.
        ours: its name in the schema.
        kind: its type in EasyRec.
        column: the first column it reads.
        config: its section.
        settings: its settings in the schema. Empty until the model reads it.
    """

    name: str
    ours: str
    kind: str
    column: str
    config: Section
    settings: dict[str, Any] = field(default_factory=dict)


class Features:
    """All features of a configuration, and the schema's settings of those that the model reads.

    Args:
        folder: base folder of the paths of vocabularies.
        item: column of the item. A feature of this column is an item feature without further settings.
    """

    def __init__(self, top: Section, rows: Rows, folder: Path, user: str, item: str) -> None:
        self.rows, self.folder, self.own = rows, folder, (user, item)
        self.specs: dict[str, Spec] = {}
        self.read: dict[str, Spec] = {}
        self._tables: dict[str, str] = {}
        self._candidates: set[str] = set()
        self._origins = top.reading.origins
        configs = [*top.all("feature_configs"), *top.section("feature_config").all("features")]
        if not configs:
            top.fault("feature_configs", "is missing; expected one feature at least")
        # Columns of shared_names come after all others, as in EasyRec.
        for config in configs:
            columns = self._find_columns(config)
            if columns:
                self._add(config.get("feature_name") or columns[0], columns[0], config)
        for config in configs:
            for name in config.all("shared_names"):
                for column in expand_range(name, config, "shared_names", rows.types):
                    if rows.require(column, config, "shared_names"):
                        self._add(column, column, config)

    def _find_columns(self, config: Section) -> list[str]:
        names = self._expand_inputs(config)
        if not names:
            config.fault("input_names", "is missing; expected the column of the feature")
        return [name for name in names if self.rows.require(name, config, "input_names")]

    def _expand_inputs(self, config: Section) -> list[str]:
        """Return the columns a feature reads. A feature that combines several may name them as a range."""
        names: list[str] = config.all("input_names")
        if config.get("feature_type") not in _COMPOSED:
            return names
        return [one for name in names for one in expand_range(name, config, "input_names", self.rows.types)]

    def _add(self, name: str, column: str, config: Section) -> None:
        if name in self.specs:
            config.fault("feature_name", f"gives a second feature the name {name!r}; expected distinct names")
            return
        ours = re.sub(r"[^\w-]", "_", name)
        ours = f"{ours}_feature" if ours in RESERVED_NAMES else ours
        while any(spec.ours == ours for spec in self.specs.values()):
            ours += "_"
        self.specs[name] = Spec(name, ours, config.get("feature_type", "IdFeature"), column, config)

    def expand_names(self, section: Section, key: str) -> list[str]:
        """Return the features that a list names, with ranges such as ``field[1-3]`` expanded."""
        return [one for name in section.all(key) for one in expand_range(name, section, key, self.specs)]

    def find(self, name: str, section: Section, key: str) -> Spec | None:
        """Return the feature with this name, or None with a fault."""
        spec = self.specs.get(name)
        if spec is None:
            near = nearest(name, self.specs)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(list(self.specs)[:12])}"
            section.fault(key, f"names the feature {name!r}, which is not configured; {hint}")
        return spec

    def use(self, spec: Spec, *, candidate: bool = False) -> str | None:
        """Add a feature to the schema.

        Args:
            candidate: it is a feature of the candidate, not of the request.

        Returns:
            Its name in the schema. None when it is not carried.
        """
        if not spec.settings:
            settings = self._convert(spec)
            if settings is None:
                return None
            spec.settings = settings
            self.read[spec.name] = spec
            self._origins[f"data.schema.features.{spec.ours}"] = spec.config.position
            for key, name in _ORIGINS.items():
                if spec.config.has(name):
                    spec.config.record_origin(f"data.schema.features.{spec.ours}.{key}", name)
        if candidate and spec.column not in self.own:
            spec.settings["side"] = "candidate"
            if spec.kind not in _COMPOSED:
                self._candidates.add(spec.column)
        return spec.ours

    def convert_features(self) -> dict[str, dict[str, Any]]:
        """Return the features of the schema, in the order of the configuration."""
        order = ("kind", "side", "column")
        for spec in self.specs.values():  # all features of a column have one side
            if spec.settings and spec.column in self._candidates and spec.kind not in _COMPOSED:
                spec.settings["side"] = "candidate"
        return {
            spec.ours: {key: spec.settings[key] for key in (*order, *spec.settings) if key in spec.settings}
            for spec in self.specs.values()
            if spec.settings
        }

    def note_unread(self) -> None:
        """Note the features that no group of the model names."""
        for spec in self.specs.values():
            if spec.name not in self.read and spec.kind not in ("ExprFeature", "PassThroughFeature"):
                spec.config.note("input_names", "not carried", f"no part of the model reads the feature {spec.name}")

    # ---- kinds ----

    def _convert(self, spec: Spec) -> dict[str, Any] | None:
        convert = {
            "IdFeature": self._convert_id,
            "RawFeature": self._convert_raw,
            "TagFeature": self._convert_tag,
            "SequenceFeature": self._convert_sequence,
            "ComboFeature": self._convert_combo,
            "LookupFeature": self._convert_lookup,
        }.get(spec.kind)
        if convert is None:
            explanation = f"{spec.kind} is not computed; the model reads no {spec.name}; make the column in the rows"
            spec.config.note("feature_type", "not carried", explanation)
            return None
        settings = convert(spec)
        if spec.column != spec.ours and spec.kind not in _COMPOSED:
            settings["column"] = spec.column
        if spec.kind != "RawFeature" or "edges" in settings or spec.config.get("embedding_dim", 0):
            self._add_dim(spec, settings)
        return settings

    def _add_dim(self, spec: Spec, settings: dict[str, Any]) -> None:
        dim = spec.config.get("embedding_dim", 0)
        if dim:
            settings["dim"] = dim

    def _convert_id(self, spec: Spec) -> dict[str, Any]:
        if self.rows.types.get(spec.column) == "float":
            self.rows.types[spec.column] = "text"
            self.rows.defaults.pop(spec.column, None)
            spec.config.note("input_names", "differs", f"numbers of {spec.column} are compared as they are written")
        return {"kind": "id", **self._convert_encoding(spec)}

    def _convert_encoding(self, spec: Spec) -> dict[str, Any]:
        """Convert the encoding of ids: another feature's ids, hashed, from a list or file, or a learned vocabulary."""
        config = spec.config
        hashed, listed = config.get("hash_bucket_size", 0), config.all("vocab_list")
        file, buckets = config.get("vocab_file"), config.get("num_buckets", 0)
        encodings = {"hash_bucket_size": hashed, "vocab_list": listed, "vocab_file": file, "num_buckets": buckets}
        written = [name for name, value in encodings.items() if value]
        if len(written) > 1:
            config.fault(written[1], f"conflicts with {written[0]}; expected one of the two")
        elif not written and not config.has("ev_params"):
            config.fault(
                "input_names", f"of {spec.name} lack one of {', '.join(encodings)}; expected how values become ids"
            )
        shared = config.get("embedding_name")
        if shared:
            owner = self._tables.setdefault(shared, spec.ours)
            if owner != spec.ours:
                config.record_origin(f"data.schema.features.{spec.ours}.share", "embedding_name")
                return {"share": owner}
        if hashed:
            return {"hash": hashed}
        if listed:
            whole = all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in listed)
            if self.rows.types.get(spec.column) == "int" and spec.kind == "IdFeature" and whole:
                return {"vocab": [int(value) for value in listed]}
            self.read_as_text(spec.column)
            return {"vocab": listed}
        if file:
            return {"vocab": file if "://" in file else self.folder / file}
        return {}

    def _convert_raw(self, spec: Spec) -> dict[str, Any]:
        config, column = spec.config, spec.column
        width, combined = config.get("raw_input_dim", 1), config.has("seq_multi_sep")
        if width == 1 and not combined and self.rows.types.get(column) == "text":
            self.rows.types[column] = "float"
            self.rows.defaults[column] = _parse_number(self.rows.defaults.get(column))
        low, high = config.get("min_val", 0.0), config.get("max_val", 0.0)
        function = config.get("normalizer_fn")
        if function is not None and function not in _LOG:
            config.fault("normalizer_fn", f"is {function!r}; expected log1p, or the function applied in the rows")
        edges = sorted(config.all("boundaries"))
        buckets = config.get("num_buckets", 0)
        if not edges and buckets > 1 and high > low:
            edges = [number / buckets for number in range(buckets + 1)] if buckets <= 10_000 else []
        if edges:
            return {
                "kind": "bucketized",
                "edges": [_simplify(_denormalize(edge, low, high, function)) for edge in edges],
            }
        settings: dict[str, Any] = {"kind": "numeric"}
        if function in _LOG:
            settings["scale"] = "log"
            if high > low:
                config.note("normalizer_fn", "differs", "min_val and max_val are not applied before it")
        elif high > low and width == 1:
            settings["scale"] = "minmax"
        elif high > low:
            config.note("max_val", "not carried", "several numbers are not scaled")
        if width > 1:
            settings |= {"width": width, "separator": config.get("separator", "|")}
        return settings

    def _convert_tag(self, spec: Spec) -> dict[str, Any]:
        config, names = spec.config, spec.config.all("input_names")
        pair = config.get("kv_separator")
        if len(names) > 2 or (pair and len(names) > 1):
            config.fault("input_names", f"of {spec.name} are too many; expected values, or values and weights")
        settings = self._convert_multi(spec, config.get("combiner", "sum"))
        if pair:
            settings["weight_separator"] = pair
        elif len(names) == 2 and spec.column == names[0]:
            settings["weights"] = names[1]
            self.read_as_text(names[1])
        return settings

    def _convert_multi(self, spec: Spec, pool: str) -> dict[str, Any]:
        if pool not in _POOLS:
            spec.config.fault("combiner", f"is {pool!r}; expected one of {', '.join(_POOLS)}")
        self.read_as_text(spec.column)
        separator = spec.config.get("separator", "|")
        return {
            "kind": "multi_id",
            **self._convert_encoding(spec),
            "separator": separator,
            "pool": _POOLS.get(pool, "sum"),
        }

    def read_as_text(self, column: str) -> None:
        """Read a column as text, as a cell of several numbers is."""
        if self.rows.types.get(column) in ("int", "float"):
            self.rows.types[column] = "text"
            self.rows.defaults.pop(column, None)

    def _convert_sequence(self, spec: Spec) -> dict[str, Any]:
        """Convert a sequence outside attention: its values are pooled without order."""
        if spec.config.get("sub_feature_type", "IdFeature") != "IdFeature":
            spec.config.note("sub_feature_type", "differs", "outside attention the numbers of a sequence are ids")
        spec.config.get("sequence_combiner")
        spec.config.get("combiner")
        return self._convert_multi(spec, "mean")

    def _convert_combo(self, spec: Spec) -> dict[str, Any]:
        config = spec.config
        names, hashed = self._expand_inputs(config), config.get("hash_bucket_size", 0)
        config.get("combo_join_sep")
        if len(names) < 2:
            config.fault("input_names", f"of {spec.name} are {len(names)}; expected two columns at least to combine")
        if not hashed:
            config.fault("hash_bucket_size", f"of {spec.name} is missing; expected the number of buckets")
        for name in names:
            config.record_origin(f"data.schema.features.{spec.ours}.features", "input_names")
            if self.rows.types.get(name) == "float":
                config.note("input_names", "differs", f"numbers of {name} are combined as LongRec writes them")
        return {"kind": "cross", "features": names, "hash": hashed}

    def _convert_lookup(self, spec: Spec) -> dict[str, Any]:
        config, names = spec.config, self._expand_inputs(spec.config)
        if len(names) != 2:
            config.fault("input_names", f"of {spec.name} are {len(names)}; expected two columns: the map and the key")
            names = [*names, "", ""]
        settings: dict[str, Any] = {"kind": "lookup", "map": names[0], "key": names[1]}
        settings["separator"] = config.get("separator", "|")
        if config.has("kv_separator"):
            settings["pair_separator"] = config.get("kv_separator")
        edges = sorted(config.all("boundaries"))
        if edges:
            return settings | {"as": "bucketized", "edges": [_simplify(edge) for edge in edges]}
        return settings | {"as": "id", **self._convert_encoding(spec)}


_ORIGINS = {
    "hash": "hash_bucket_size",
    "vocab": "vocab_list",
    "edges": "boundaries",
    "dim": "embedding_dim",
    "separator": "separator",
    "weight_separator": "kv_separator",
    "width": "raw_input_dim",
}


def _parse_number(text: Any) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _denormalize(edge: float, low: float, high: float, function: str | None) -> float:
    """Convert an edge of normalized numbers to an edge of the raw numbers."""
    if function in _LOG:
        edge = math.expm1(edge) if edge < 700 else math.inf
    return low + edge * (high - low) if high > low else edge


def _simplify(number: float) -> int | float:
    """Return a whole number as an int."""
    return int(number) if math.isfinite(number) and number == int(number) and abs(number) < 1e15 else number
