"""One message of a configuration as typed values, with a record of the fields that were read.

A field that is never read is not converted (its status is ``not carried``). Each such field is noted at the end,
whatever its status in the table, so that a conversion that forgets a field cannot drop it in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from longrec.errors import ConfigError, nearest, shorten
from longrec.interop.easyrec_fields import ENUMS, MESSAGES, NUMBERED, EasyRecField, Status
from longrec.interop.text_format import Field, Message, Number, Position, Text, Word, as_float

_TRUE, _FALSE = ("true", "True", "t", "1"), ("false", "False", "f", "0")
_WHOLE = 2**63


@dataclass(frozen=True, order=True)
class Note:
    """A remark on one field that could not be converted exactly."""

    position: Position
    field: str
    status: Status
    explanation: str

    def __str__(self) -> str:
        return f"{self.position}: {self.field}: {self.status}: {self.explanation}"

    @property
    def changes_results(self) -> bool:
        """True if the difference may change training or metrics. In doubt it is True."""
        leaf = self.field.rpartition(".")[2]
        return leaf not in _HARMLESS and not (self.field.startswith(_OUTSIDE) and leaf not in _CHOICES)


_OUTSIDE = ("export_config.", "eval_config.")
_CHOICES = (
    "exporter_type",
    "enable_early_stop",
    "early_stop_func",
    "early_stop_params",
    "max_check_steps",
    "reduction",
)
"""Fields of these sections that choose the weights, or the weights of a metric."""
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
"""Fields of machines, files and names, which do not change what a model learns."""


def sort_notes(notes: Iterable[Note]) -> list[Note]:
    """Sort notes: first those that change results, and of each kind those of unconverted fields before the others."""
    return sorted(notes, key=lambda note: (not note.changes_results, note.status != "not carried", note.position))


_MOST_FAULTS, _LONGEST_FAULT = 200, 2_000
"""Number of faults after which reading stops, and characters of the longest one."""


@dataclass
class Reading:
    """Faults, notes and origins collected while a configuration is read.

    Attributes:
        where: the file, as its faults name it.
        faults: one line per fault, each with line and column.
        notes: one per field that is converted with changes, or not converted.
        origins: dotted path of a setting of the job (``data.schema.features.brand``) -> its position in the file.
        options: messages name user and item by the options of ``longrec import``, else by settings of a job.
    """

    where: str
    faults: list[tuple[Position, str]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    origins: dict[str, Position] = field(default_factory=dict)
    options: bool = True

    def option_for(self, key: str, value: str = "") -> str:
        """Return the argument that sets the user or the item: ``--item COLUMN`` or ``data.schema.item=COLUMN``."""
        if self.options:
            return f"--{key} {value}".rstrip()
        return f"data.schema.{key}={value}" if value else f"data.schema.{key}"

    def fault(self, position: Position, description: str) -> None:
        """Add a fault. All faults are raised together, and at once if there are too many to read.

        Raises:
            ConfigError: if there are 200 faults.
        """
        description = shorten(description, _LONGEST_FAULT)
        if (position, description) not in self.faults:
            self.faults.append((position, description))
        if len(self.faults) >= _MOST_FAULTS:
            raise self.error()

    def note(self, position: Position, name: str, status: Status, explanation: str) -> None:
        """Add a note about the status of a field."""
        self.notes.append(Note(position, name, status, explanation))

    def error(self) -> ConfigError:
        """Return the error with all faults, in the order of the file."""
        return ConfigError(
            self.where, [f"{self.where}:{position}: {description}" for position, description in sorted(self.faults)]
        )

    def locate(self, faults: list[str]) -> list[str]:
        """Add to each fault, which begins with a dotted path of the job, its line in the configuration."""
        lines = []
        for fault in faults:
            path = fault.partition(":")[0]
            while path and path not in self.origins:
                path = path.rpartition(".")[0]
            lines.append(f"{self.where}:{self.origins.get(path, Position(1, 1))}: {fault}")
        return lines


class Section:
    """A message of a known kind.

    Args:
        message: EasyRec's name of the message.
        node: its parsed fields. None for a message that is absent, whose fields all have their defaults.
        path: dotted path of the message, for notes and faults.
        position: line and column of the message, or of its parent where it is absent.
    """

    def __init__(self, reading: Reading, message: str, node: Message | None, path: str, position: Position) -> None:
        self.reading, self.message, self.path, self.position = reading, message, path, position
        self.present = node is not None
        self._read: set[str] = set()
        self._carried_fields: set[str] = set()
        self._specs = MESSAGES[message]
        self._values: dict[str, list[tuple[Any, Position]]] = {}
        groups: dict[str, str] = {}
        for one in node.fields if node is not None else ():
            spec = self._specs.get(one.name)
            if spec is None:
                self._unknown(one)
                continue
            if spec.group is not None and groups.setdefault(spec.group, one.name) != one.name:
                self._fault(one, f"conflicts with {groups[spec.group]}; expected one of the two")
            if one.name in self._values and not spec.repeated:
                self._fault(one, "is written twice; expected once")
            value = self._read_value(spec, one)
            if value is not None:
                self._values.setdefault(one.name, []).append((value, one.position))

    def _fault(self, one: Field, description: str) -> None:
        self.reading.fault(one.position, f"{self._path_of(one.name)} {description}")

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _unknown(self, one: Field) -> None:
        near = nearest(one.name, self._specs)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(self._specs)}"
        self._fault(one, f"is no field of {self.message}; {hint}")

    def _read_value(self, spec: EasyRecField, one: Field) -> Any:
        """Parse a value by the field's type. None, with a fault, when it does not fit."""
        value, kind = one.value, spec.type
        if kind == "any":
            return value
        if kind in MESSAGES and isinstance(value, Message):
            return Section(self.reading, kind, value, self._path_of(one.name), one.position)
        result = None if isinstance(value, Message) or kind in MESSAGES else _parse_scalar(kind, value)
        if result is None:
            self._fault(one, f"is {_format_value(value)}; expected {_describe_expected(kind, value)}")
        return result

    # ---- reading ----

    def _take(self, name: str) -> list[tuple[Any, Position]]:
        assert name in self._specs, f"{self.message}.{name} is not in the table"
        self._read.add(name)
        return self._values.get(name, [])

    def has(self, name: str) -> bool:
        """Return True if a field is written. This does not count as reading it."""
        assert name in self._specs, f"{self.message}.{name} is not in the table"
        return bool(self._values.get(name))

    def written_field(self, group: str) -> str | None:
        """Return the field of a group that is written."""
        return next((name for name in self._values if self._specs[name].group == group), None)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a field, or the default."""
        entries = self._take(name)
        return entries[-1][0] if entries else default

    def all(self, name: str) -> list[Any]:
        """Return all values of a repeated field."""
        return [value for value, _ in self._take(name)]

    def section(self, name: str) -> Section:
        """Return an inner message, without fields where it is absent."""
        entries = self._take(name)
        if entries:
            inner: Section = entries[-1][0]
            return inner
        return Section(self.reading, self._specs[name].type, None, self._path_of(name), self.position)

    def position_of(self, name: str, number: int = -1) -> Position:
        """Return the position of a field, or of the message where the field is absent."""
        entries = self._values.get(name)
        return entries[number][1] if entries else self.position

    # ---- notes and faults ----

    def note(self, name: str, status: Status, explanation: str) -> None:
        """Add a note about a field, besides the one of the table."""
        self.reading.note(self.position_of(name), self._path_of(name), status, explanation)

    def mark_carried(self, name: str) -> None:
        """Mark a field as converted although its status in the table says otherwise, so that no note is added."""
        self._carried_fields.add(name)

    def fault(self, name: str, description: str) -> None:
        """Add a fault of a field."""
        self.reading.fault(self.position_of(name), f"{self._path_of(name)} {description}")

    def record_origin(self, path: str, name: str) -> None:
        """Record that the job's setting at ``path`` comes from this field."""
        self.reading.origins[path] = self.position_of(name)

    def settle(self) -> None:
        """Note or refuse every field that is written. To be called after all fields were read."""
        for name, values in self._values.items():
            spec = self._specs[name]
            position, dotted = values[0][1], self._path_of(name)
            if spec.status == "refused":
                self.reading.fault(
                    position, f"{dotted} is not carried over: {spec.explanation}; take it out, or change it"
                )
            elif name in self._carried_fields:
                continue
            elif spec.status == "not carried":
                self.reading.note(position, dotted, spec.status, spec.explanation)
            elif name not in self._read:
                explanation = "nothing reads it here" if self.message != "EasyRecModel" else "another model's settings"
                self.reading.note(position, dotted, "not carried", explanation)
            else:
                if spec.status == "differs":
                    self.reading.note(position, dotted, spec.status, spec.explanation)
                for inner in _inner_sections(values):
                    inner.settle()


def _inner_sections(values: list[tuple[Any, Position]]) -> Iterator[Section]:
    return (value for value, _ in values if isinstance(value, Section))


def _parse_scalar(kind: str, value: Text | Number | Word) -> Any:
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


def _describe_expected(kind: str, value: Text | Number | Word | Message) -> str:
    if kind in MESSAGES:
        return "a message in braces"
    if kind.startswith("enum:"):
        names = [name for name in ENUMS[kind.removeprefix("enum:")] if name]
        near = nearest(value.value, names) if isinstance(value, Word | Text) else None
        return f"a word without quotes, {near} perhaps" if near else f"one of {', '.join(names)}"
    return {"text": "text in quotes", "bool": "true or false", "int": "a whole number, 0 or more"}.get(kind, "a number")


def _format_value(value: Text | Number | Word | Message) -> str:
    if isinstance(value, Message):
        return "a message"
    text = repr(value.value) if isinstance(value, Text) else str(value.value)
    return text if len(text) <= 60 else text[:57] + "..."
