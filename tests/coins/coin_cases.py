"""The factors that a leak may depend on, an array of cases that covers all pairs of their values, and their configs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from coin_log import DAY, EVERY, FAR_LINE, LINE, iso

Case = Mapping[str, str]

FACTORS: dict[str, tuple[str, ...]] = {
    "split": ("test_from", "shares", "test_days", "user", "leave_one_out", "column", "files"),
    "form": ("spread", "tied", "request"),
    "clock": ("seconds", "text", "zoned"),
    "label": ("at_once", "delay", "available_at"),
    "echo": ("as_label", "delay", "available_at"),
    "tokens": ("none", "blocks", "positive"),
    "knowledge": ("none", "keep"),
    "start": ("new", "earlier_run"),
    "late": ("none", "available_at"),
    "tables": ("none", "static", "as_of"),
    "tasks": ("one", "shared_bottom", "esmm"),
    "weights": ("none", "sample_weight", "negative_rate"),
    "scores": ("offline", "served"),
}
COSTS = (("scores", "served", "offline"), ("knowledge", "keep", "none"), ("tokens", "blocks", "none"))
TIME_SPLITS = ("test_from", "shares", "test_days")


def valid(case: Case) -> bool:
    """Whether values may go together; ``case`` may hold some factors only."""
    get = case.get
    # A label that is known at once tells the later rows of its session, and so does feedback.
    if get("form") == "spread" and get("label") == "at_once":
        return False
    if get("form") == "spread" and get("echo") == "as_label" and get("label") in ("at_once", "available_at"):
        return False
    # Negatives are sampled for one label alone.
    if get("weights") == "negative_rate" and get("tasks", "one") != "one":
        return False
    # A run is earlier than another where both have a line in time.
    return not (get("start") == "earlier_run" and get("split", "test_from") not in TIME_SPLITS)


def pairs(case: Case) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two factors of a case with their values."""
    return itertools.combinations(sorted(case.items()), 2)


def possible_pairs() -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """All pairs of values that some case can show."""
    random, shown_pairs = np.random.default_rng(0), set()
    for (one, ones), (other, others) in itertools.combinations(sorted(FACTORS.items()), 2):
        for a, b in itertools.product(ones, others):
            if ((one, a), (other, b)) not in shown_pairs and (case := complete_case({one: a, other: b}, random)):
                shown_pairs.update(pairs(case))
    return shown_pairs


def complete_case(case: Case, random: np.random.Generator) -> dict[str, str] | None:
    """The case with the missing factors drawn at random; None where nothing fits."""
    for _ in range(200):
        drawn = random.random(len(FACTORS))
        candidate = {
            name: values[int(share * len(values))] for share, (name, values) in zip(drawn, FACTORS.items())
        } | case
        if valid(candidate):
            return candidate
    return None


def covering(seed: int = 40, tries: int = 40) -> list[dict[str, str]]:
    """Cases that show every possible pair: each is the best of some random completions of a pair that is missing.

    What costs most is then taken out again wherever all pairs are still shown without it.
    """
    random = np.random.default_rng(seed)
    missing, cases = possible_pairs(), []
    while missing:
        wanted = sorted(missing)[random.integers(len(missing))]
        drawn = [complete_case(dict(wanted), random) for _ in range(tries)]
        best = max((case for case in drawn if case), key=lambda case: len(missing.intersection(pairs(case))))
        cases.append(best)
        missing.difference_update(pairs(best))
    shown = Counter(itertools.chain.from_iterable(map(pairs, cases)))
    for factor, costly, cheap in COSTS:
        for index, case in enumerate(cases):
            other = {**case, factor: cheap}
            lost = set(pairs(case)) - set(pairs(other))
            if case[factor] == costly and valid(other) and all(shown[pair] > 1 for pair in lost):
                shown.subtract(lost)
                cases[index] = other
    return cases


BASE: Case = {name: values[0] for name, values in FACTORS.items()} | {"label": "delay"}


def name(case: Case) -> str:
    """A case as the name of a test."""
    return "-".join(case[factor] for factor in FACTORS)


# ---- configs -----------------------------------------------------------------------------------------------------

FIT: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 1_024,
    "lr": 0.04,
    "l2": 0.0,
    "patience": 0,
    "val_checks_per_epoch": 1,
    "checkpoint_seconds": None,
    "tensorboard": "off",
    "mlflow": "off",
}
WIDTHS = {"embedding_dim": 4, "mlp": [16], "batch_norm": False}
SOURCE: dict[str, Any] = {
    "name": "iat",
    "order": "temporal",
    "width": 4,
    "decoder": 8,
    "base": {"name": "deepfm", "embedding_dim": 4, "mlp": [8], "batch_norm": False, "dropout": 0.0},
}
EXTRACTOR: dict[str, Any] = {
    "name": "keep", "embedding_dim": 4, "user": [4], "item": [4], "both": [8], "attention": [4], "tasks": {"echo": 1.0},
}  # fmt: skip


def split(case: Case) -> dict[str, Any]:
    """The split of a case; those by time share one line but for the way it is named."""
    return {
        "test_from": {"test_from": iso(LINE)},
        "shares": {"by": "time", "valid": 0, "test": None},  # the runner knows the share
        "test_days": {"test_days": None},
        "user": {"by": "user", "valid": 0, "test": 0.4},
        "leave_one_out": {"by": "leave_one_out"},
        "column": {"by": "column", "column": "part"},
        "files": {"by": "files", "allow_overlap": True},
    }[case["split"]]


EARLIER, LATER = {"test_from": iso(LINE - EVERY)}, {"test_from": iso(FAR_LINE)}


def schema(case: Case, *, tokens: str | None = None, knowledge: str | None = None) -> dict[str, Any]:
    """The schema of a case.

    Args:
        tokens, knowledge: stores to read.
    """
    learned = {"hash": 4_000} if case["start"] != "new" else {}
    click = {"kind": "id", "vocab": [0, 1], "feedback": True}
    echo = dict(click)
    if case["label"] == "available_at":
        click["available_at"] = "seen_at"
    if case["echo"] != "as_label":
        echo |= {"available_after": "2d"} if case["echo"] == "delay" else {"available_at": "echo_at"}
    time: dict[str, Any] = {"column": "at", **({"unit": "s"} if case["clock"] == "seconds" else {})}
    if case["late"] != "none":
        time["available_at"] = "told_at"
    features: dict[str, Any] = {
        "user_id": {"kind": "id", **learned},
        "item_id": {"kind": "id", **learned},
        "place": {"kind": "id", "vocab": list(range(8))},
        "hint": {"kind": "id", "vocab": [0, 1, 2], "column": "noise" if case["late"] == "none" else "hint"},
        "click": click,
        "echo": echo,
    }
    if case["tables"] != "none":
        kinds = [*range(4), 10, 11]
        features |= {f"{side}_kind": {"kind": "id", "side": side, "vocab": kinds} for side in ("user", "item")}
    filtered = (
        {"click": 1} if case["label"] != "available_at" else {"echo": 1} if case["echo"] != "available_at" else {}
    )
    histories: dict[str, Any] = {
        "seen": {"features": ["item_id", "click", "echo", "hint", "time_gap"], "max_length": 5},
        "liked": {"features": ["place", "time_gap"], "max_length": 3, "where": filtered},
    }
    if tokens is not None:
        histories["tokens"] = {"from": tokens, "features": ["token", "label", "time_gap"], "max_length": 2}
    if knowledge is not None:
        for side in ("user", "item"):
            features[f"about_{side}"] = {"kind": "embedding", "from": knowledge, "side": side}
    schema_dict: dict[str, Any] = {
        "user": "user_id",
        "item": "item_id",
        "time": time,
        "label": "click",
        "features": features,
        "histories": histories,
    }
    if case["label"] == "delay":
        schema_dict["label_delay"] = f"{DAY}s"
    if case["form"] == "request":
        schema_dict["request"] = "visit"
    return schema_dict


def model(case: Case) -> dict[str, Any]:
    """The model of a case: tasks stand on the ranker, knowledge is plugged into the ranker."""
    plain = {"name": "pooling", **WIDTHS}
    if case["knowledge"] != "none":
        plain = {"name": "keep_plug", "base": plain}
    over = {"base": plain} if case["knowledge"] != "none" else {}
    tasks = {**over, **WIDTHS}
    return {
        "one": plain,
        "shared_bottom": {"name": "shared_bottom", **tasks, "tower": [], "tasks": {"echo": 1.0}},
        "esmm": {"name": "esmm", **tasks, "click": "echo"},
    }[case["tasks"]]
