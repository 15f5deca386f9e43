"""Types and defaults of settings, in the words of the reference pages."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from longrec.config import Strict, to_yaml
from longrec.data import settings as data_settings
from longrec.data.frames import Frame, FrameRecord
from longrec.features.duration import Duration

SCALARS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
    Any: "any value",
}
BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


def _read_validator(annotation: Any) -> Callable[..., Any]:
    return next(item.func for item in typing.get_args(annotation)[1:] if isinstance(item, BeforeValidator))


VALIDATED: Mapping[Any, str] = {
    _read_validator(Duration): "duration, such as `90s`, `1h` or `7d`",
    _read_validator(data_settings.TimestampT): "timestamp",
    _read_validator(data_settings.FilesT): "path or glob, or a list of them",
    _read_validator(data_settings.SourceT): "path or glob, a list of them, or a mapping",
    _read_validator(data_settings.FrameT): "data frame",
    data_settings._size: "size, such as `500MB` or `2GB`",
}
"""Types that a validator makes from the text of a config."""


def format_type(field: FieldInfo) -> str:
    """Return the type of a setting with its bounds, such as ``whole number, at least 1``."""
    return _format(field.annotation, field.metadata)


def _format(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    for item in metadata:
        if isinstance(item, BeforeValidator) and item.func in VALIDATED:
            return VALIDATED[item.func]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _format(arguments[0], [*arguments[1:], *metadata])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_format(one, metadata) for one in arguments if one is not type(None)))
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return _format_list(arguments)
    if origin is dict:
        return f"mapping from a name to {_format(arguments[1])}"
    if annotation is Frame or annotation is FrameRecord:
        return "frame, in Python only"
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return f"[{annotation.__name__}](#{annotation.__name__})"  # replaced by the heading of the class
    if annotation not in SCALARS:
        raise TypeError(f"no words for the type {annotation!r}")
    return ", ".join([SCALARS[annotation], *_format_bounds(metadata)])


def _format_list(arguments: tuple[Any, ...]) -> str:
    item = _format(arguments[0])
    plural = item.replace("number", "numbers", 1) if "number" in item else item
    return f"list of {plural}" if Ellipsis in arguments else f"list of {len(arguments)} {plural}"


def _format_bounds(metadata: typing.Sequence[Any]) -> list[str]:
    bounds = []
    for item in metadata:
        if type(item) in BOUNDS:
            name, text = BOUNDS[type(item)]
            bounds.append(f"{text} {format_number(getattr(item, name))}")
    return bounds


def format_number(value: float) -> str:
    """Return a number as a config writes it, with powers of two as such if they are large."""
    for shift in (-3, -1, 0):
        if isinstance(value, int) and value > 10**6 and (value - shift).bit_count() == 1:
            power = (value - shift).bit_length() - 1
            return f"2^{power}" + (f" - {-shift}" if shift else "")
    if isinstance(value, int):
        return f"{value:,}"
    return re.sub(r"e([-+]?)0*(\d)", r"e\1\2", f"{value:g}")


def format_default(field: FieldInfo) -> str:
    """Return the default of a setting that has one: a value as a config writes it, or the text of its description."""
    value = field.get_default(call_default_factory=True)
    if value is None or (value == () and split_description(field)[1]):
        return split_description(field)[1] or "none"
    return format_value(value)


def format_value(value: Any) -> str:
    """Return a value as a config writes it, as code."""
    if isinstance(value, Strict):
        first = next(iter(type(value).model_fields))
        value = {first: getattr(value, first)}
    if isinstance(value, float):
        return f"`{format_number(value)}`"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple):
        value = list(value)
    text = to_yaml(value, inline=True).strip().removesuffix("\n...")
    return f"`{text}`"


def split_description(field: FieldInfo) -> tuple[str, str]:
    """Return the description of a setting without its ``default: ...``, and the text after it."""
    text, _, default = (field.description or "").partition("; default: ")
    return text, default
