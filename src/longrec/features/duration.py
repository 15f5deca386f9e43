"""Durations in the syntax of a config."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration(value: Any) -> int:
    """Convert a duration such as ``90s``, ``1h`` or ``250ms`` to milliseconds. A number without a unit is seconds.

    >>> parse_duration("1h")
    3600000
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a duration such as '90s', '1h' or '7d', got {value!r}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", str(value))
    if not match:
        raise ValueError(f"must be a duration such as '90s', '1h' or '7d' (not negative), got {value!r}")
    return round(float(match[1]) * _UNITS[match[2] or "s"])


def validate_duration(value: Any) -> str:
    """Return a duration as text.

    Raises:
        ValueError: if it is no duration.
    """
    parse_duration(value)
    return str(value)


Duration = Annotated[str, BeforeValidator(validate_duration)]
