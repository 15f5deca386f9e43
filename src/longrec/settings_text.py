"""Settings as text: type, default and meaning of every key, from the settings classes."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from longrec.config import Strict, to_yaml
from longrec.features.duration import validate_duration
from longrec.models.core.settings_schema import validate_base_section

_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class SettingText:
    """One key of a config.

    Attributes:
        key: the key, as a config writes it.
        type_text: type in words: ``whole number, at least 1``.
        default: the default as YAML. None if the key is required, empty if it is not set.
        meaning: description of the key.
        section: class of the keys inside it.
        is_mapping: True if it maps names to such sections.
    """

    key: str
    type_text: str
    default: str | None
    meaning: str
    section: type[Strict] | None
    is_mapping: bool

    @property
    def searched(self) -> str:
        """Text in which a word is searched."""
        return f"{self.type_text} {self.meaning}"

    @property
    def summary(self) -> str:
        """Type and default in one line."""
        if self.default is None:
            return f"{self.type_text}; required"
        return f"{self.type_text}; default {self.default}" if self.default else self.type_text


def describe_settings(cls: type[Strict]) -> list[SettingText]:
    """Return the keys of a settings class, in their order.

    >>> class Net(Strict):
    ...     rate: float = FieldInfo(default=0.5, gt=0, description="learning rate")
    >>> describe_settings(Net)[0].summary
    'number above 0; default 0.5'
    """
    return [_describe_setting(field.alias or name, field) for name, field in cls.model_fields.items()]


def _describe_setting(key: str, field: FieldInfo) -> SettingText:
    return SettingText(
        key,
        describe_type(field.annotation, tuple(field.metadata), optional=field.default is None),
        _format_default(field),
        field.description or "",
        find_section(field.annotation),
        any(typing.get_origin(one) is dict for one in _list_options(field.annotation)),
    )


def _format_default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    # The keys of a section have defaults of their own.
    if value is None or value in ((), {}, []) or find_section(field.annotation) is not None:
        return ""
    return format_value(value)


def format_value(value: Any) -> str:
    """Return a value as YAML on one line.

    >>> format_value((0.9, 1e-5)), format_value({"name": "din", "mlp": []}), format_value(":")
    ('[0.9, 1e-05]', '{name: din, mlp: []}', "':'")
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return to_yaml({"key": value}).removeprefix("key: ").strip()


def find_section(annotation: Any) -> type[Strict] | None:
    """Return the settings class inside ``X | None``, ``dict[str, X]`` and the like. None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next(filter(None, map(find_section, typing.get_args(annotation))), None)


def describe_type(annotation: Any, metadata: tuple[Any, ...] = (), *, optional: bool = False) -> str:
    """Return a type in words.

    Args:
        metadata: constraints of the value.
        optional: leave out null, of a key that is not set by default.

    >>> describe_type(tuple[int, ...])
    'list of whole numbers'
    """
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *own = typing.get_args(annotation)
        return describe_type(inner, (*own, *metadata), optional=optional)
    if any(getattr(one, "func", None) is validate_duration for one in metadata):
        return "duration such as 90s, 1h or 7d"
    options = _list_options(annotation)
    if len(options) > 1:
        named = [one for one in options if not (one is type(None) and optional)]
        return " or ".join(describe_type(one, () if one is type(None) else metadata) for one in named)
    if any(getattr(one, "func", None) is validate_base_section for one in metadata):
        return "section of a model, with its name"
    return f"{_describe_plain_type(annotation)}{_describe_limits(metadata)}"


def _list_options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _describe_plain_type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {_pluralize(describe_type(arguments[0]))}"
    if origin is tuple:
        kinds = list(dict.fromkeys(map(describe_type, arguments)))
        one = _pluralize(kinds[0]) if len(kinds) == 1 else f"values: {', '.join(kinds)}"
        return f"list of {len(arguments)} {one}"
    if origin is dict:
        section = find_section(annotation)
        if section is not None:
            return "one section per name"
        return "mapping" if arguments[1] is Any else f"mapping from a name to {describe_type(arguments[1])}"
    if find_section(annotation) is not None:
        return "section"
    return _PLAIN.get(annotation, "value")


def _describe_limits(metadata: tuple[Any, ...]) -> str:
    bounds = [f"{word} {_format_bound(value)}" for one in metadata for word, value in _list_bounds(one)]
    return f" {' and '.join(bounds)}" if bounds else ""


def _format_bound(value: Any) -> str:
    return f"2^{value.bit_length() - 1}" if isinstance(value, int) and value > 2**31 else f"{value:,}"


def _list_bounds(constraint: Any) -> Iterator[tuple[str, Any]]:
    """Yield the bounds of one constraint, which may be a ``Field`` with several."""
    inner = getattr(constraint, "metadata", None)
    for one in inner if inner is not None else [constraint]:
        for name, word in _LIMITS.items():
            if (value := getattr(one, name, None)) is not None:
                yield word, value


def _pluralize(text: str) -> str:
    """Return the plural of a type, with its limits per element."""
    if " or " in text:
        return " or ".join(map(_pluralize, text.split(" or ")))
    for noun in ("whole number", "number", "list", "section", "text"):
        if text == noun or text.startswith(f"{noun} "):
            rest = text.removeprefix(noun)
            return f"{noun}s,{rest.replace(' ', ' each ', 1)}" if rest and noun != "list" else f"{noun}s{rest}"
    return text.removeprefix("one of ")


def join_defaults(text: SettingText, others: Mapping[str, Any]) -> str:
    """Return type and default of a key, with the default of retrievers where it is another one."""
    if text.key not in others:
        return text.summary
    return f"{text.summary}, of a retriever {format_value(others[text.key])}"
