"""One message of a configuration as typed values, which remember whether anybody has read them.

What nobody read was not carried: at the end every such field is noted, whatever its table says. So a mapping that
forgets a field cannot drop it in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from longrec.errors import ConfigError, nearest
from longrec.interop.easyrec_fields import ENUMS, MESSAGES, NUMBERED, EasyRecField, Fate
from longrec.interop.text_format import Field, Message, Number, Place, Text, Word, as_float

_TRUE, _FALSE = ("true", "True", "t", "1"), ("false", "False", "f", "0")
_WHOLE = 2**63


@dataclass(frozen=True, order=True)
class Note:
    """One line about one field that is carried with a difference or not carried."""

    place: Place
    field: str
    fate: Fate
    words: str

    def __str__(self) -> str:
        return f"{self.place}: {self.field}: {self.fate}: {self.words}"

    @property
    def changes_results(self) -> bool:
        """Whether the difference may change what a model learns or how it is measured; when in doubt it may."""
        leaf = self.field.rpartition(".")[2]
        return leaf not in _HARMLESS and not (self.field.startswith(_OUTSIDE) and leaf not in _CHOOSES)


_OUTSIDE = ("export_config.", "eval_config.")
_CHOOSES = (
    "exporter_type",
    "enable_early_stop",
    "early_stop_func",
    "early_stop_params",
    "max_check_steps",
    "reduction",
)
"""Fields of these sections that choose the weights, or weigh a metric."""
_HARMLESS = frozenset(
    [
        "model_dir",
        "fg_json_path",
        "sync_replicas",
        "sparse_accumulator_type",
        "startup_delay_steps",
        "keep_checkpoint_max",
        "save_summary_steps",
        "is_profiling",
        "force_restore_shape_compatible",
        "train_distribute",
        "num_gpus_per_worker",
        "summary_model_vars",
        "protocol",
        "inter_op_parallelism_threads",
        "intra_op_parallelism_threads",
        "tensor_fuse",
        "write_graph",
        "incr_save_config",
        "enable_oss_stop_signal",
        "dead_line",
        "prefetch_size",
        "shard",
        "file_shard",
        "num_parallel_calls",
        "selected_cols",
        "selected_col_types",
        "rtp_separator",
        "pai_worker_queue",
        "pai_worker_slice_num",
        "chief_redundant",
        "data_compression_type",
        "n_data_batch_tfrecord",
        "feature_fields",
        "embedding_on_cpu",
        "max_partitions",
        "tf_summary",
        "model_name",
        "loss_name",
        "expert_name",
        "tower_name",
        "network_name",
        "restore_filters",
        "wide_regularization",
        "dense_regularization",
        "ignore_error",
    ]
)
"""Fields of machines, files and names: where a model runs, not what it learns."""


def by_weight(notes: Iterable[Note]) -> list[Note]:
    """Notes with what changes results first, and among those what is not carried before what differs."""
    return sorted(notes, key=lambda note: (not note.changes_results, note.fate != "not carried", note.place))


@dataclass
class Reading:
    """What is found while a configuration is read.

    Attributes:
        where: the file, as its faults name it.
        faults: one line a fault, each with line and column.
        notes: one a field that is carried with a difference or not carried.
        origins: where in the file a word of the job comes from, by its dotted path (``data.schema.features.brand``).
        options: whether user and item are named by the options of ``longrec import``; else by settings of a job.
    """

    where: str
    faults: list[tuple[Place, str]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    origins: dict[str, Place] = field(default_factory=dict)
    options: bool = True

    def named_by(self, key: str, value: str = "") -> str:
        """How the user or the item is named in words that the command at hand takes: ``--item COLUMN``, or
        ``data.schema.item=COLUMN``.
        """
        if self.options:
            return f"--{key} {value}".rstrip()
        return f"data.schema.{key}={value}" if value else f"data.schema.{key}"

    def fault(self, place: Place, words: str) -> None:
        """Remember a fault; all of them are raised together."""
        if (place, words) not in self.faults:
            self.faults.append((place, words))

    def note(self, place: Place, name: str, fate: Fate, words: str) -> None:
        """Remember what becomes of a field."""
        self.notes.append(Note(place, name, fate, words))

    def error(self) -> ConfigError:
        """All faults, in the order of the file."""
        return ConfigError(self.where, [f"{self.where}:{place}: {words}" for place, words in sorted(self.faults)])

    def located(self, faults: list[str]) -> list[str]:
        """Faults that begin with a dotted path of the job, each with the line of the configuration it comes from."""
        lines = []
        for fault in faults:
            path = fault.partition(":")[0]
            while path and path not in self.origins:
                path = path.rpartition(".")[0]
            lines.append(f"{self.where}:{self.origins.get(path, Place(1, 1))}: {fault}")
        return lines


class Section:
    """A message of a known kind.

    Args:
        message: EasyRec's name of the message.
        node: its fields as read; None for a message that is not there, all of whose fields are then at their defaults.
        path: the fields that lead to it, dotted, for notes and faults.
        place: where it stands, or where it would.
    """

    def __init__(self, reading: Reading, message: str, node: Message | None, path: str, place: Place) -> None:
        self.reading, self.message, self.path, self.place = reading, message, path, place
        self.there = node is not None
        self._read: set[str] = set()
        self._carried: set[str] = set()
        self._known = MESSAGES[message]
        self._values: dict[str, list[tuple[Any, Place]]] = {}
        groups: dict[str, str] = {}
        for one in node.fields if node is not None else ():
            known = self._known.get(one.name)
            if known is None:
                self._unknown(one)
                continue
            if known.group is not None and groups.setdefault(known.group, one.name) != one.name:
                self._fault(one, f"stands beside {groups[known.group]}; expected one of the two")
            if one.name in self._values and not known.repeated:
                self._fault(one, "is written twice; expected once")
            value = self._value(known, one)
            if value is not None:
                self._values.setdefault(one.name, []).append((value, one.place))

    def _fault(self, one: Field, words: str) -> None:
        self.reading.fault(one.place, f"{self._dotted(one.name)} {words}")

    def _dotted(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _unknown(self, one: Field) -> None:
        near = nearest(one.name, self._known)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(self._known)}"
        self._fault(one, f"is no field of {self.message}; {hint}")

    def _value(self, known: EasyRecField, one: Field) -> Any:
        """What the field's type makes of a value; None, with a fault, when it makes nothing of it."""
        value, kind = one.value, known.type
        if kind == "any":
            return value
        if kind in MESSAGES and isinstance(value, Message):
            return Section(self.reading, kind, value, self._dotted(one.name), one.place)
        made = None if isinstance(value, Message) or kind in MESSAGES else _scalar(kind, value)
        if made is None:
            self._fault(one, f"is {_told(value)}; expected {_expected(kind, value)}")
        return made

    # ---- reading ----

    def _take(self, name: str) -> list[tuple[Any, Place]]:
        assert name in self._known, f"{self.message}.{name} is not in the table"
        self._read.add(name)
        return self._values.get(name, [])

    def has(self, name: str) -> bool:
        """Whether a field is written; does not count as reading it."""
        assert name in self._known, f"{self.message}.{name} is not in the table"
        return bool(self._values.get(name))

    def which(self, group: str) -> str | None:
        """The field of a group that is written."""
        return next((name for name in self._values if self._known[name].group == group), None)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or the default."""
        taken = self._take(name)
        return taken[-1][0] if taken else default

    def all(self, name: str) -> list[Any]:
        """All values of a repeated field."""
        return [value for value, _ in self._take(name)]

    def section(self, name: str) -> Section:
        """A message inside; where it is not written, one without fields."""
        taken = self._take(name)
        if taken:
            made: Section = taken[-1][0]
            return made
        return Section(self.reading, self._known[name].type, None, self._dotted(name), self.place)

    def at(self, name: str, number: int = -1) -> Place:
        """Where a field stands; where the message stands when it is not written."""
        taken = self._values.get(name)
        return taken[number][1] if taken else self.place

    # ---- telling ----

    def note(self, name: str, fate: Fate, words: str) -> None:
        """Note something about a field that its table does not say."""
        self.reading.note(self.at(name), self._dotted(name), fate, words)

    def carried(self, name: str) -> None:
        """Note nothing about a field that its table says is not carried: here it is."""
        self._carried.add(name)

    def fault(self, name: str, words: str) -> None:
        """A fault of a field."""
        self.reading.fault(self.at(name), f"{self._dotted(name)} {words}")

    def origin(self, path: str, name: str) -> None:
        """The word of the job at ``path`` comes from this field."""
        self.reading.origins[path] = self.at(name)

    def settle(self) -> None:
        """Note or refuse every field that is written, after all were read that anybody reads."""
        for name, values in self._values.items():
            known = self._known[name]
            place, dotted = values[0][1], self._dotted(name)
            if known.fate == "refused":
                self.reading.fault(place, f"{dotted} is not carried over: {known.words}; take it out, or change it")
            elif name in self._carried:
                continue
            elif known.fate == "not carried":
                self.reading.note(place, dotted, known.fate, known.words)
            elif name not in self._read:
                words = "nothing reads it here" if self.message != "EasyRecModel" else "another model's settings"
                self.reading.note(place, dotted, "not carried", words)
            else:
                if known.fate == "differs":
                    self.reading.note(place, dotted, known.fate, known.words)
                for inner in _sections(values):
                    inner.settle()


def _sections(values: list[tuple[Any, Place]]) -> Iterator[Section]:
    return (value for value, _ in values if isinstance(value, Section))


def _scalar(kind: str, value: Text | Number | Word) -> Any:
    if kind == "text":
        return value.value if isinstance(value, Text) else None
    if isinstance(value, Text):
        return None
    if kind == "bool":
        word = str(value.value)
        return word in _TRUE if word in (*_TRUE, *_FALSE) else None
    if kind == "int":
        whole = isinstance(value, Number) and isinstance(value.value, int) and 0 <= value.value < _WHOLE
        return value.value if whole else None
    if kind == "float":
        return as_float(value)
    names = ENUMS[kind.removeprefix("enum:")]
    if isinstance(value, Word):
        return value.value if value.value in names else None
    numbered = kind.removeprefix("enum:") in NUMBERED and value.value in range(len(names))
    return names[int(value.value)] or None if numbered else None


def _expected(kind: str, value: Text | Number | Word | Message) -> str:
    if kind in MESSAGES:
        return "a message in braces"
    if kind.startswith("enum:"):
        names = [name for name in ENUMS[kind.removeprefix("enum:")] if name]
        near = nearest(value.value, names) if isinstance(value, Word | Text) else None
        return f"a word without quotes, {near} perhaps" if near else f"one of {', '.join(names)}"
    return {"text": "text in quotes", "bool": "true or false", "int": "a whole number, 0 or more"}.get(kind, "a number")


def _told(value: Text | Number | Word | Message) -> str:
    if isinstance(value, Message):
        return "a message"
    told = repr(value.value) if isinstance(value, Text) else str(value.value)
    return told if len(told) <= 60 else told[:57] + "..."
