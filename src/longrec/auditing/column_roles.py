"""Columns of a log by role: as named, or guessed from the usual names of public datasets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from longrec.data.casts import is_real, is_text
from longrec.data.relation import INTEGERS, Relation
from longrec.data.settings import DataConfig
from longrec.data.sql import literal, name
from longrec.errors import DataError, nearest
from longrec.features.schema import Label, Schema

USUAL: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "user": (
        ("user_id", "userid", "user", "uid", "user_idx"),
        ("customer_id", "customerid", "reviewerid", "visitorid", "visitor_id", "member_id", "session_id", "sessionid"),
    ),
    "item": (
        ("item_id", "itemid", "item", "iid", "item_idx"),
        ("video_id", "product_id", "productid", "movie_id", "movieid", "asin", "parent_asin", "article_id", "news_id"),
        ("movie", "track_id", "song_id", "book_id", "business_id", "adgroup_id", "photo_id", "sku", "poi_id"),
    ),
    "time": (
        ("timestamp", "time", "ts", "t", "unix_timestamp", "unixreviewtime", "event_time", "time_ms", "timestamp_ms"),
        ("datetime", "created_at", "shown_at", "time_stamp", "event_timestamp"),
        ("date", "day", "reviewtime"),
    ),
    "label": (("label", "click", "clicked", "is_click", "is_clicked", "clk"),),
    "order": (("position", "order", "sequence_number", "seq", "step"),),
    "split": (("split", "fold", "subset"),),
}
"""Usual names by role. Those of an earlier group are preferred, and two of one group are ambiguous."""
SPLIT_NAMES = {
    "train": 0, "training": 0, "tr": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "test": 2, "te": 2,
}  # fmt: skip
"""Values of a split column, and their codes."""
_REQUIRED = ("user", "item")
_NUMBERS = INTEGERS | {"UBIGINT", "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE"}


@dataclass(frozen=True)
class ColumnRoles:
    """Columns of a log.

    Attributes:
        user, item: keys.
        time: time of the event.
        label: column of the label.
        label_sql: SQL of the label, 0 or 1.
        order: column that orders the events of a user.
        split: column with train, valid or test.
        features: further columns.
        histories: list columns with the items of pre-joined histories.
        history_times: list columns with the times of the events of a history.
        guessed: roles that were guessed.
    """

    user: str
    item: str
    time: str | None = None
    label: str | None = None
    label_sql: str | None = None
    order: str | None = None
    split: str | None = None
    features: tuple[str, ...] = ()
    histories: tuple[str, ...] = ()
    history_times: tuple[str, ...] = ()
    guessed: tuple[str, ...] = field(default=(), compare=False)

    def describe(self) -> dict[str, str]:
        """Return the columns by role, as text."""
        texts = {role: getattr(self, role) for role in USUAL if getattr(self, role) is not None}
        texts |= {"histories": ", ".join(self.histories)} if self.histories else {}
        return {role: f"{text}{' (guessed)' if role in self.guessed else ''}" for role, text in texts.items()}


def choose_columns(
    log: Relation,
    named: Mapping[str, str | None],
    features: Sequence[str] | None = None,
    histories: Sequence[str] | None = None,
) -> ColumnRoles:
    """Return the columns by role.

    Args:
        named: columns that the caller names, by role. Others are guessed.
        features: further columns. None: all columns of numbers, texts and times without a role.
        histories: list columns of pre-joined histories. None: chosen among the list columns by their contents.

    Raises:
        DataError: a column that the log does not have, a required one that no usual name fits, or several that fit.
    """
    options = {role: column for role, column in named.items() if column is not None}
    _check_columns(log, options, features or (), histories or ())
    chosen, guessed = dict[str, str](options), list[str]()
    for role in USUAL:
        if role in chosen:
            continue
        column = _guess(log, role, set(chosen.values()) | set(features or ()))
        if column is not None:
            chosen[role] = column
            guessed.append(role)
        elif role in _REQUIRED:
            expected = f"a column with a usual name, such as {USUAL[role][0][0]}"
            do = f"name it: --{role} COLUMN; the file has {', '.join(log.types)}"
            raise DataError(log.where, f"no column that is the {role} by its name", expected, do)
    lists = [column for column, kind in log.types.items() if kind.endswith("[]") and not kind.endswith("[][]")]
    times = [column for column in lists if re.search(r"time|(^|_)ts(_|$)", column, re.I) and "time" in chosen]
    items = [column for column in lists if column not in times and _has_type_of(log, column, chosen["item"])]
    stem = normalize_name(chosen["item"]).removesuffix("id").rstrip("_")
    # Numbers of categories look like numbers of items. A name that says which is which settles it.
    items = [column for column in items if stem and stem in normalize_name(column)] or items
    every = tuple(column for column, kind in log.types.items() if is_scalar(kind) and column not in chosen.values())
    return ColumnRoles(
        user=chosen["user"],
        item=chosen["item"],
        time=chosen.get("time"),
        label=chosen.get("label"),
        label_sql=name(chosen["label"]) if "label" in chosen else None,
        order=chosen.get("order"),
        split=chosen.get("split"),
        features=every if features is None else tuple(dict.fromkeys(features)),
        histories=tuple(items if histories is None else dict.fromkeys(histories)),
        history_times=tuple(times),
        guessed=tuple(guessed),
    )


def _check_columns(
    log: Relation, options: Mapping[str, str], features: Sequence[str], histories: Sequence[str]
) -> None:
    """Raise one error for all named columns that the log does not have, or that are of another kind."""
    named = [(f"--{role}", column, True) for role, column in options.items()]
    named += [("--features", column, True) for column in features] + [("--history", one, False) for one in histories]
    faults = []
    for option, column, scalar in named:
        if column not in log.types:
            near = nearest(column, log.types)
            faults.append(f"no column {column!r} ({option})" + (f", did you mean {near!r}?" if near else ""))
        elif is_scalar(log.types[column]) != scalar:
            wanted = "numbers, texts or times" if scalar else "lists"
            faults.append(f"column {column!r} ({option}) has values of type {log.types[column]}, not {wanted}")
    if faults:
        raise DataError(log.where, "; ".join(faults), f"columns of the log: {', '.join(log.types)}")
    log.need({column: option for option, column, _ in named})  # columns that only some of the files have


def is_scalar(kind: str) -> bool:
    """Return whether a SQL type is one of numbers, texts or times."""
    return (
        kind in _NUMBERS
        or kind.startswith(("DECIMAL", "TIMESTAMP", "DATE", "ENUM"))
        or is_text(kind)
        or is_real(kind)
        or kind == "BOOLEAN"
    )


def normalize_name(column: str) -> str:
    """Return a column name in lower case without the type that some formats append.

    >>> normalize_name("User_ID:token")
    'user_id'
    """
    return column.split(":")[0].strip().lower()


def _guess(log: Relation, role: str, taken: Collection[str]) -> str | None:
    scalar = {column for column, kind in log.types.items() if is_scalar(kind)} - set(taken)
    for group in USUAL[role]:
        fitting = [column for column in log.types if column in scalar and normalize_name(column) in group]
        fitting = [column for column in fitting if _is_plausible(log, role, column)]
        if len(fitting) > 1:
            raise DataError(
                log.where,
                f"several columns that may be the {role}: {', '.join(fitting)}",
                "one of them",
                f"name it: --{role} {fitting[0]}",
            )
        if fitting:
            return fitting[0]
    return None


def _is_plausible(log: Relation, role: str, column: str) -> bool:
    """Return whether the values of a column fit a role that a name alone does not settle."""
    value, kind = name(column), log.types[column]
    if role == "label":
        if is_text(kind) or not (kind in _NUMBERS or kind == "BOOLEAN"):
            return False
        counted = log.row(
            f"SELECT count(*) FILTER (WHERE {value}::DOUBLE NOT IN (0, 1)), count(DISTINCT {value}) FROM {log.view}"
        )
        return counted is not None and counted[0] == 0 and counted[1] == 2
    if role == "split":
        listed = ", ".join(f"'{one}'" for one in SPLIT_NAMES)
        return is_text(kind) and not log.one(
            f"SELECT count(*) FROM {log.view} WHERE {value} IS NULL OR lower({value}) NOT IN ({listed})"
        )
    return role != "order" or (kind in INTEGERS and kind != "BOOLEAN")


def _has_type_of(log: Relation, column: str, item: str) -> bool:
    inside, own = log.types[column].removesuffix("[]"), log.types[item]
    return is_text(inside) == is_text(own) and (is_text(own) or inside in _NUMBERS)


def read_roles(log: Relation, schema: Schema, data: DataConfig) -> ColumnRoles:
    """Return the columns that a schema names.

    Raises:
        DataError: a schema without a user or an item, or a column that the log does not have.
    """
    if schema.user is None or schema.item is None:
        raise DataError(log.where, "a schema without a user or an item", "both, to audit the log")
    roles = {"user": schema.user, "item": schema.item}
    if schema.time is not None:
        roles |= {"time": schema.time.column} | ({} if schema.time.order is None else {"order": schema.time.order})
    if data.split.column is not None:
        roles["split"] = data.split.column
    label = schema.label
    features = [
        column
        for feature, settings in schema.features.items()
        if not settings.feedback and settings.source is None and settings.kind != "calendar"
        for column in schema.columns(feature)
        if column in log.types and column not in roles.values() and is_scalar(log.types[column])
    ]
    lists = [
        column
        for history in schema.histories.values()
        for feature, column in (history.columns or {}).items()
        if schema.column(feature) == schema.item and log.types.get(column, "").endswith("[]")
    ]
    log.need({column: role for role, column in roles.items()} | ({} if label is None else {label.column: "label"}))
    return ColumnRoles(
        user=schema.user,
        item=schema.item,
        time=roles.get("time"),
        order=roles.get("order"),
        split=roles.get("split"),
        label=None if label is None else label.column,
        label_sql=None if label is None else _label_sql(label),
        features=tuple(dict.fromkeys(features)),
        histories=tuple(lists),
    )


def _label_sql(label: Label) -> str:
    value = name(label.column)
    if label.at_least is not None:
        return f"{value}::DOUBLE >= {label.at_least!r}"
    if label.equals is not None:
        return f"{value} = {literal(label.equals) if isinstance(label.equals, str) else label.equals}"
    return value
