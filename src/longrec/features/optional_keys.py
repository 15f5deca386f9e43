"""What a schema can do without a user, an item or a time column: logs of rows that no history reads."""

from __future__ import annotations

from collections.abc import Mapping


def find_missing_key_faults(
    keys: Mapping[str, str | None],
    sides: Mapping[str, str],
    histories: Mapping[str, bool],
    request: bool,
) -> list[str]:
    """Return one message per part of a schema that needs a column that the schema does not name.

    Args:
        keys: column of the user, of the item and of the time, or None.
        sides: side of each feature.
        histories: for each history, whether it is pre-joined.
        request: whether the schema groups rows by request.
    """
    faults = []
    stored = [name for name, prejoined in histories.items() if not prejoined]
    for role in ("user", "item"):
        if keys[role] is not None:
            continue
        faults += [
            f"features.{name}: side {role} needs the schema's {role}; set {role}, or side: "
            f"{'context' if role == 'user' else 'candidate'}"
            for name, side in sides.items()
            if side == role
        ]
        faults += [
            f"{role}: is required for histories.{name}, which reads earlier events "
            f"{'of the user' if role == 'user' else 'with their items'}"
            for name in stored
        ]
    if request and keys["user"] is None:
        faults.append("request: groups the rows of a user; set user, or leave request out")
    if keys["time"] is None and stored:
        faults.append(
            f"time: is required, unless every history is pre-joined (columns): histories.{stored[0]} reads the events "
            "before a timestamp"
        )
    return faults
