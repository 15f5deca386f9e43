"""Strict parsing of YAML into frozen, typed configs. All config errors are reported together.

A config class is a pydantic model that forbids unknown keys. Its files are read by ``yaml_reader.py``.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from longrec.errors import ConfigError, nearest, quote, shorten
from longrec.yaml_reader import load_yaml
from longrec.yaml_reader import read_yaml as read_yaml  # also read from here

_FORMATTED = 200
"""Number of faults that are formatted."""


class Strict(BaseModel):
    """Base class of every config: frozen, no unknown keys, finite numbers, defaults validated too.

    Attributes:
        renamed_keys: former name of a key -> its name. A former name is refused with a message that gives the new one.
        renamed_values: name of a key -> former value -> value. They also hold for the items of a list.
        rules: functions from a config to the faults of keys that do not fit each other.
        next_fault: separator between the faults of a whole section, in the message of its own check. None for one.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    rules: ClassVar[Sequence[Callable[[Any], list[str]]]] = ()
    next_fault: ClassVar[re.Pattern[str] | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        faults = [fault for rule in self.rules for fault in rule(self)]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(type(self).__name__, split_faults(type(self), faults(error, type(self)))) from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Return the keys that were set. All others have their defaults."""
        return ((key, value) for key, value in super().__repr_args__() if key in self.model_fields_set)

    # Sections inside a section are then validated without this constructor, so that all faults stay in one error.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


StrictT = TypeVar("StrictT", bound=Strict)


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which :func:`read_yaml`, by the rules of YAML 1.2, would parse as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out every occurrence of a value, without anchors."""
        return True


_Dumper.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def to_yaml(content: Any, *, inline: bool = False) -> str:
    """Format plain values as YAML that :func:`read_yaml` reads back to the same.

    Args:
        inline: write collections of plain values on one line.
    """
    flow = None if inline else False
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=flow)


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` overrides to a mapping. The value is parsed as YAML.

    >>> apply_overrides({"fit": {"lr": 0.1}}, ["fit.lr=3e-3", "seed=1"])
    {'fit': {'lr': 0.003}, 'seed': 1}
    """
    result: dict[str, Any] = _copy(content)
    faults = []
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or "" in path.split("."):
            faults.append(f"{shorten(word, 200)}: an override is written key.key=value")
            continue
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            faults.append(f"{shorten(word, 200)}: {' '.join(str(error).split())}")
            continue
        *parents, last = path.split(".")
        section = result
        for parent in parents:
            inner = section.get(parent)
            if inner is None:
                inner = section[parent] = {}
            if not isinstance(inner, dict):
                faults.append(f"{shorten(word, 200)}: {parent} is a value, not a section")
                break
            section = inner
        else:
            section[last] = value
    if faults:
        raise ConfigError("command line", faults)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def parse(cls: type[StrictT], content: Any, where: str, prefix: str = "") -> StrictT:
    """Parse a mapping into ``cls``.

    Args:
        where: the file (or command) named in the message.
        prefix: dotted path of this section inside the file.

    Raises:
        ConfigError: if the config has faults. All are listed, one line per fault.
    """
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise ConfigError(where, faults(error, cls, prefix)) from None


def faults(error: ValidationError, cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Return one line per fault of a pydantic error: dotted path, finding, expectation, nearest name.

    After the first 200 the number of the others follows, because a hint compares a key with all valid ones.
    """
    details = error.errors()
    lines = [_format_fault(detail, cls, prefix) for detail in details[:_FORMATTED]]
    return [*lines, f"and {len(details) - _FORMATTED:,} more"] if len(details) > _FORMATTED else lines


def split_faults(cls: type[Strict], lines: Sequence[str], prefix: str = "") -> list[str]:
    """Return faults with each fault of the whole section on a line of its own, at its own location."""
    whole, result = f"{prefix or 'config'}: ", list[str]()
    for line in lines:
        if cls.next_fault is None or not line.startswith(whole):
            result.append(line)
        else:
            own = cls.next_fault.split(line.removeprefix(whole))
            result += [f"{prefix}.{fault}" if prefix else fault for fault in own]
    return result


_MESSAGES = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
}


def _format_fault(detail: Any, cls: type[BaseModel], prefix: str) -> str:
    location = tuple(key for key in detail["loc"] if not (isinstance(key, str) and "[" in key))
    names = [shorten(str(key), 200) for key in location]
    path = ".".join([prefix, *names] if prefix else names) or "config"
    kind = detail["type"]
    if kind == "missing":  # its input is the whole section, which may hold data frames
        return f"{path}: is required"
    got = quote(detail["input"])
    if len(got) > 80:
        got = got[:77] + "..."
    owner, key = _find_class(cls, location[:-1]), str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        if (new := _renamed_keys(owner).get(key)) is not None:
            return f"{path}: is called {new} now; write {_write_inline(owner, new, detail['input'])}"
        valid_keys = _list_keys(owner)
        near = nearest(str(location[-1]), valid_keys)
        return f"{path}: unknown key" + (f"; did you mean {near!r}?" if near else f"; known: {', '.join(valid_keys)}")
    if kind == "literal_error":
        if (new_value := _rename_value(owner, key, detail["input"])) != detail["input"]:
            return f"{path}: {got} is called {new_value!r} now; write {key}: {new_value}"
        return f"{path}: must be one of {detail['ctx']['expected']}; got {got}"
    if kind in _MESSAGES:
        return f"{path}: {_MESSAGES[kind]}, got {got}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind in ("value_error", "assertion_error"):
        return f"{path}: {message}"
    return f"{path}: {message[0].lower()}{message[1:]}, got {got}"


def _find_class(cls: type[BaseModel], location: Sequence[int | str]) -> Any:
    """Return the class at a location inside a config class. It is a config class when the location is a section."""
    here: Any = cls
    for key in location:
        field = _find_field(here, str(key))
        here = _unwrap_annotation(here if field is None else field.annotation)
    return here


def _find_field(cls: Any, key: str) -> Any:
    """Return the field of a config class under a key, which is its name or its alias. None when it has none."""
    fields: Mapping[str, Any] = getattr(cls, "model_fields", {})
    return next((field for name, field in fields.items() if key in (name, field.alias)), None)


def _list_keys(cls: Any) -> list[str]:
    """Return the keys of a config class. Empty for any other class."""
    fields = getattr(cls, "model_fields", None)
    return [field.alias or name for name, field in fields.items()] if fields else []


def _renamed_keys(cls: Any) -> Mapping[str, str]:
    return cls.renamed_keys if isinstance(cls, type) and issubclass(cls, Strict) else {}


def _rename_value(cls: Any, key: str, value: Any) -> Any:
    """Return a value, or the items of a list, under their present names."""
    if not (isinstance(cls, type) and issubclass(cls, Strict)):
        return value
    names = cls.renamed_values.get(key, {})
    if isinstance(value, (list, tuple)):
        return [names.get(item, item) if isinstance(item, Hashable) else item for item in value]
    return names.get(value, value) if isinstance(value, Hashable) else value


def _write_inline(cls: Any, key: str, value: Any) -> str:
    """Return ``key: value`` as a config writes it, with ``...`` for a long value."""
    text = " ".join(to_yaml({key: _rename_value(cls, key, value)}, inline=True).split())
    text = text[1:-1] if text.startswith("{") else text
    return text if len(text) <= 80 else f"{key}: ..."


def upgrade(cls: type[BaseModel], content: Any) -> Any:
    """Return stored content of a config class under the present names of its keys and values.

    Files that an earlier version wrote are read so. Content with present names stays as it is.
    """
    if not isinstance(content, Mapping):
        return content
    result = {}
    for old, value in content.items():
        key = _renamed_keys(cls).get(old, old)
        field = _find_field(cls, key)
        result[key] = value if field is None else _upgrade_value(field.annotation, _rename_value(cls, key, value))
    return result


def _upgrade_value(annotation: Any, value: Any) -> Any:
    inner = _unwrap_annotation(annotation)
    if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
        return value
    if isinstance(value, list):
        return [upgrade(inner, item) for item in value]
    if isinstance(value, Mapping) and typing.get_origin(annotation) is dict:
        return {key: upgrade(inner, item) for key, item in value.items()}
    return upgrade(inner, value)


def _unwrap_annotation(annotation: Any) -> Any:
    """Return the config class inside ``X | None``, ``dict[str, X]``, ``tuple[X, ...]``."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, dict, list, tuple, typing.Annotated):
        for inner in typing.get_args(annotation):
            config_class = _unwrap_annotation(inner)
            if isinstance(config_class, type) and issubclass(config_class, BaseModel):
                return config_class
    return annotation
