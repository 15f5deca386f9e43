"""Conversion of EasyRec's attention groups to histories in the rows: the sequence of each feature."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from longrec.interop.easyrec_features import Features, Spec
from longrec.interop.easyrec_section import Section

ALL = 1_000_000
"""Length of a history without ``max_seq_len``: all its events."""


@dataclass
class _Pair:
    """A feature of the candidate and the sequence of its values in the history."""

    key: Spec
    ours: str
    sequence: Spec


class Histories:
    """The histories that some tower attends to, by their names in the schema."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.settings: dict[str, dict[str, Any]] = {}

    def use(self, group: Section) -> list[str]:
        """Add the histories of an attention group: one, unless its sequences do not fit into one.

        Returns:
            Their names. Empty if nothing of the group is converted.
        """
        name = re.sub(r"[^\w-]", "_", group.get("group_name") or "history")
        group.get("allow_key_search")
        group.get("allow_key_transform")
        group.get("transform_dnn")
        histories: list[str] = []
        for pair in self._find_pairs(group):
            separator = pair.sequence.config.get("separator", "|")
            last = pair.sequence.config.get("max_seq_len", 0) or ALL
            history = next((one for one in histories if self._accepts(one, pair, separator)), None)
            if history is None:
                history = name
                while history in self.settings:
                    history = f"{name}_{int(history.rpartition('_')[2]) + 1}" if history != name else f"{name}_2"
                if histories:
                    group.note(
                        "seq_att_map", "differs", f"{pair.sequence.name} gets an attention of its own, {history}"
                    )
                histories.append(history)
                self.settings[history] = {"features": [], "columns": {}, "separator": separator, "max_length": last}
                group.reading.origins[f"data.schema.histories.{history}"] = group.position
            settings = self.settings[history]
            settings["features"].append(pair.ours)
            settings["columns"][pair.ours] = pair.sequence.column
            if last != settings["max_length"]:
                settings["max_length"] = min(last, settings["max_length"])
                note = f"the shortest max_seq_len of the group holds for all: {settings['last']}"
                pair.sequence.config.note("max_seq_len", "differs", note)
            if pair.sequence.config.has("max_seq_len"):
                pair.sequence.config.record_origin(f"data.schema.histories.{history}.max_length", "max_seq_len")
        return histories

    def _accepts(self, history: str, pair: _Pair, separator: str) -> bool:
        settings = self.settings[history]
        return pair.ours not in settings["columns"] and settings["separator"] == separator

    def _find_pairs(self, group: Section) -> list[_Pair]:
        pairs: list[_Pair] = []
        maps: list[Section] = group.all("seq_att_map")
        if not maps:
            group.fault("seq_att_map", "is missing; expected the features of the candidate and their sequences")
        for one in maps:
            keys, sequences = self.features.expand_names(one, "key"), self.features.expand_names(one, "hist_seq")
            if len(keys) != len(sequences) or not keys:
                one.fault("hist_seq", f"has {len(sequences)} sequences for {len(keys)} of key; expected one per key")
            for key, sequence in zip(keys, sequences):
                pair = self._match_pair(one, key, sequence)
                if pair is not None:
                    pairs.append(pair)
        return pairs

    def _match_pair(self, one: Section, key: str, sequence: str) -> _Pair | None:
        key_spec, sequence_spec = self.features.find(key, one, "key"), self.features.find(sequence, one, "hist_seq")
        if key_spec is None or sequence_spec is None:
            return None
        if sequence_spec.kind not in ("SequenceFeature", "TagFeature"):
            one.fault("hist_seq", f"names {sequence!r}, which is a {sequence_spec.kind}; expected a SequenceFeature")
            return None
        ours = self.features.use(key_spec, candidate=True)
        kind = key_spec.settings.get("kind")
        if ours is None or kind not in ("id", "bucketized"):
            explanation = (
                f"a history holds no {kind or key_spec.kind} such as {key}; its sequence {sequence} is left out"
            )
            one.note("key", "not carried", explanation)
            return None
        self._note_differences(key_spec, sequence_spec)
        self.features.read.setdefault(sequence_spec.name, sequence_spec)
        return _Pair(key_spec, ours, sequence_spec)

    def _note_differences(self, key: Spec, sequence: Spec) -> None:
        """Note where the encoding of a sequence differs from its key's, whose ids and table it shares here."""
        config, other = sequence.config, key.config
        self.features.read_as_text(sequence.column)
        config.get("feature_type")
        steps = "RawFeature" if key.settings["kind"] == "bucketized" else "IdFeature"
        if config.get("sub_feature_type", "IdFeature") != steps:
            config.note("sub_feature_type", "differs", f"its steps are encoded as {key.name} is")
        for name in ("hash_bucket_size", "num_buckets", "embedding_dim", "vocab_file"):
            if config.get(name) != other.get(name) and config.has(name):
                config.note(name, "differs", f"as {key.name}: {other.get(name) or 'none'}")
        for name in ("boundaries", "vocab_list"):
            if config.all(name) != other.all(name) and config.has(name):
                config.note(name, "differs", f"as {key.name}")
        config.get("combiner")
        shared = config.get("embedding_name")
        if not shared or shared != other.get("embedding_name"):
            config.note("input_names", "differs", f"its steps share ids and table with {key.name}, as a history does")
