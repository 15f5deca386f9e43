"""Arms of the study: the inputs of each arm and the token store it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE: dict[str, Any] = {"name": "deepfm", "mlp": [256, 128], "batch_norm": False, "dropout": 0.0, "init_std": 0.001}
"""First order, pairs and an MLP. Nothing is tuned for one arm only."""


@dataclass(frozen=True)
class TokenStoreSpec:
    """One token store: settings of the source and of the compression."""

    source: dict[str, Any] = field(default_factory=dict)
    compress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One downstream model.

    Attributes:
        tokens: name of the store it reads, or None.
        history: columns of the hand-made history it reads, or empty.
        token_columns: columns of the token history. None: those of the study.
        max_length: length of both histories. None: that of the study.
        reader: settings of ``iat_reader``.
    """

    tokens: str | None = None
    history: tuple[str, ...] = ()
    token_columns: tuple[str, ...] | None = None
    max_length: int | None = None
    reader: dict[str, Any] = field(default_factory=dict)


TEMPORAL = {"order": "temporal"}
USER = {"order": "user", "context": 32, "rows_per_user": 128}

STORES: dict[str, TokenStoreSpec] = {
    "t": TokenStoreSpec(TEMPORAL),
    "u": TokenStoreSpec(USER),
    "ul": TokenStoreSpec({**USER, "labels": True}),
    "leaky": TokenStoreSpec(TEMPORAL, {"mode": "leaky_checkpoint"}),
    "after-sit": TokenStoreSpec({**USER, "stored": "after"}),
    "two-pass": TokenStoreSpec({**USER, "passes": "two"}, {"epochs": 2}),
    **{f"t-width-{width}": TokenStoreSpec({**TEMPORAL, "width": width}) for width in (16, 32, 128)},
    "t-codes": TokenStoreSpec({**TEMPORAL, "slots": 4, "width": 16, "codes": True}),
    "t-k4": TokenStoreSpec({**TEMPORAL, "slots": 4, "width": 16}),
    "t-int8": TokenStoreSpec(TEMPORAL, {"codec": "int8"}),
    "t-raw": TokenStoreSpec(TEMPORAL, {"standardize": "false"}),
    "t-stream": TokenStoreSpec(TEMPORAL, {"mode": "stream"}),
    "u-stream": TokenStoreSpec(USER, {"mode": "stream"}),
}


def build_main_arms(history: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Arm]:
    """Build the arms of the main table.

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


def build_ablations(history: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Arm]:
    """Build the ablations: one change each, compared with the arm of the main table that it changes.

    A read that improves tokens may improve labels and gaps only. Each read has its own side-only and history arms.
    """
    reads = {
        f"{name} read by {title}": Arm(arm.tokens, arm.history, reader={**arm.reader, "read": read})
        for title, read in (("Transformer", "transformer"), ("LONGER", "longer"))
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
        "T without labels": Arm("t", token_columns=("token", "time_gap")),
        "T read by DIN": Arm("t", reader={"read": "din"}),
        **reads,
        **{f"T width {width}": Arm(f"t-width-{width}") for width in (16, 32, 128)},
        **{f"T length {length}": Arm("t", max_length=length) for length in (10, 32, 64, 128, 256)},
        **{
            f"side-only length {length}": Arm("t", max_length=length, reader={"tokens": "zeroed"})
            for length in (32, 64, 128, 256)
        },
        "T codes": Arm("t-codes"),
        "T 4 tokens an instance": Arm("t-k4"),
        "T int8": Arm("t-int8"),
        "T not standardized": Arm("t-raw", token_columns=("token", "version", "label", *labels, "time_gap")),
        "T stream": Arm("t-stream"),
        "U stream": Arm("u-stream"),
    }
