"""The arms of the study: what each reads, and from which tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE: dict[str, Any] = {"name": "deepfm", "mlp": [256, 128], "batch_norm": False, "dropout": 0.0, "init_std": 0.001}
"""First order, pairs and an MLP, as in the pilot; nothing is tuned for one arm alone."""


@dataclass(frozen=True)
class Tokens:
    """One token store: the source's settings, and how it is compressed."""

    source: dict[str, Any] = field(default_factory=dict)
    compress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One downstream model.

    Attributes:
        tokens: name of the store it reads, or None.
        history: columns of the hand-made history it reads, or none.
        of: columns of the token history.
        last: length of both histories; the log's own where None.
        reader: settings of ``iat_reader``.
    """

    tokens: str | None = None
    history: tuple[str, ...] = ()
    of: tuple[str, ...] | None = None
    last: int | None = None
    reader: dict[str, Any] = field(default_factory=dict)


TEMPORAL = {"order": "temporal"}
USER = {"order": "user", "context": 32, "rows_per_user": 128}

STORES: dict[str, Tokens] = {
    "t": Tokens(TEMPORAL),
    "u": Tokens(USER),
    "ul": Tokens({**USER, "labels": True}),
    "leaky": Tokens(TEMPORAL, {"regime": "leaky_checkpoint"}),
    "after-sit": Tokens({**USER, "stored": "after"}),
    "two-pass": Tokens({**USER, "passes": "two"}, {"epochs": 2}),
    **{f"t-width-{width}": Tokens({**TEMPORAL, "width": width}) for width in (16, 32, 128)},
    "t-codes": Tokens({**TEMPORAL, "slots": 4, "width": 16, "codes": True}),
    "t-k4": Tokens({**TEMPORAL, "slots": 4, "width": 16}),
    "t-int8": Tokens(TEMPORAL, {"codec": "int8"}),
    "t-raw": Tokens(TEMPORAL, {"standardize": "false"}),
    "t-stream": Tokens(TEMPORAL, {"regime": "stream"}),
    "u-stream": Tokens(USER, {"regime": "stream"}),
}


def main_arms(history: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Arm]:
    """The main table.

    Args:
        history: columns of the hand-made history, labels and gap among them.
        labels: its label columns.
    """
    plain = tuple(column for column in history if column not in labels)
    side = {"tokens": "zeroed"}
    return {
        "base": Arm(),
        "history": Arm(history=history),
        "history without labels": Arm(history=plain),
        "side-only": Arm("t", reader=side),
        "T-IAT": Arm("t"),
        "U-IAT": Arm("u"),
        "UL-IAT": Arm("ul"),
        "history + T": Arm("t", history=history),
        "history + U": Arm("u", history=history),
        "leaky export": Arm("leaky"),
    }


def ablations(history: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Arm]:
    """One change each, to be held against the arm of the main table that it changes.

    A read that helps tokens may help labels and gaps alone: each read has its own side-only and hand-made history.
    """
    reads = {
        f"{name} read by {words}": Arm(arm.tokens, arm.history, reader={**arm.reader, "read": read})
        for words, read in (("Transformer", "transformer"), ("LONGER", "longer"))
        for name, arm in {
            "T": Arm("t"),
            "side-only": Arm("t", reader={"tokens": "zeroed"}),
            "history": Arm(history=history),
            "U": Arm("u"),
            "history + U": Arm("u", history=history),
        }.items()
    }
    return {
        "U stored after SIT": Arm("after-sit"),
        "U two passes": Arm("two-pass"),
        "T id-only query": Arm("t", reader={"query_from": "item"}),
        "T without labels": Arm("t", of=("token", "time_gap")),
        "T read by DIN": Arm("t", reader={"read": "din"}),
        **reads,
        **{f"T width {width}": Arm(f"t-width-{width}") for width in (16, 32, 128)},
        **{f"T length {last}": Arm("t", last=last) for last in (10, 32, 64, 128, 256)},
        **{f"side-only length {last}": Arm("t", last=last, reader={"tokens": "zeroed"}) for last in (32, 64, 128, 256)},
        "T codes": Arm("t-codes"),
        "T 4 tokens an instance": Arm("t-k4"),
        "T int8": Arm("t-int8"),
        "T not standardised": Arm("t-raw", of=("token", "version", "label", *labels, "time_gap")),
        "T stream": Arm("t-stream"),
        "U stream": Arm("u-stream"),
    }
