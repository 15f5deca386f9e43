"""Warnings about facts of a log that are alarming."""

from __future__ import annotations

import math
from collections.abc import Iterator

from longrec.data.log_facts import FeatureFacts, LogFacts, SplitFacts
from longrec.features.schema import Schema

_TIED, _REPEATED, _EMPTY, _NEW, _RARE = 0.4, 0.01, 0.9, 0.5, 0.5
"""Shares at which ties, repeated rows, empty histories, new users or items, and values without an id are warned of."""
_NULLS = 0.3
"""Difference of the shares of nulls between two splits that is warned of."""
_ENOUGH, _RATIO, _DEVIATIONS = 100, 1.5, 5.0
"""Number of samples, ratio, and standard errors at which two rates of positives are called different."""


def collect_fact_warnings(facts: LogFacts, schema: Schema) -> list[str]:
    """Return one sentence per alarming fact."""
    return [
        *_warn_of_rows(facts, schema),
        *_warn_of_splits(facts),
        *_warn_of_histories(facts),
        *(sentence for name, one in facts.features.items() for sentence in _warn_of_feature(name, one, facts, schema)),
    ]


def _warn_of_rows(facts: LogFacts, schema: Schema) -> Iterator[str]:
    declares_order = schema.time is not None and (schema.time.order is not None or schema.request)
    if facts.tied is not None and facts.tied >= _TIED and schema.histories and not declares_order:
        yield (
            f"{facts.tied:.0%} of the events share their timestamp with another event of their user, and a history has "
            "only events strictly before its row; if the clock is coarse, set time.order to the column with the order"
        )
    if facts.repeated and facts.repeated >= _REPEATED * facts.events:
        yield (
            f"{facts.repeated:,} events ({facts.repeated / facts.events:.1%}) repeat the user, item and timestamp of "
            "an earlier row; remove duplicates from the log unless they are events of their own"
        )


def _warn_of_splits(facts: LogFacts) -> Iterator[str]:
    train = facts.splits["train"]
    for name, split in facts.splits.items():
        if not split.rows:
            continue
        if not split.positives:
            yield f"split {name}: none of its {split.rows:,} rows is positive, so it has no metrics; change data.split"
        elif name != "train" and _differ(train, split):
            yield (
                f"split {name}: {split.rate:.2%} of the rows are positive, and {train.rate:.2%} in train, so "
                "probabilities learned on train will be off; check whether the labels of both are complete"
            )
        for what, share in (("users", split.new_users), ("items", split.new_items)):
            if share >= _NEW and name != "train" and not (what == "users" and _splits_users(facts)):
                yield f"split {name}: {share:.0%} of the rows are of {what} without an event in train"


def _splits_users(facts: LogFacts) -> bool:
    """Return whether no user is in two splits, as in a split by user."""
    return all(split.new_users == 1 for name, split in facts.splits.items() if name != "train" and split.rows)


def _differ(one: SplitFacts, two: SplitFacts) -> bool:
    if min(one.rows, two.rows) < _ENOUGH or not one.positives or not two.positives:
        return False
    pooled = (one.positives + two.positives) / (one.rows + two.rows)
    error = math.sqrt(pooled * (1 - pooled) * (1 / one.rows + 1 / two.rows))
    ratio = max(one.rate, two.rate) / min(one.rate, two.rate)
    return ratio >= _RATIO and abs(one.rate - two.rate) > _DEVIATIONS * error


def _warn_of_histories(facts: LogFacts) -> Iterator[str]:
    for name, history in facts.histories.items():
        empty = history.empty.get("train", 0.0)
        if empty == 1:
            yield f"history {name}: empty for every training row, so models learn nothing from it; check its where"
        elif empty >= _EMPTY:
            yield f"history {name}: empty for {empty:.0%} of the training rows"


def _warn_of_feature(name: str, feature: FeatureFacts, facts: LogFacts, schema: Schema) -> Iterator[str]:
    nulls = feature.nulls.get("train", 0.0)
    if nulls == 1:
        yield f"feature {name}: null in every training row, so it has no information; remove it"
    elif feature.distinct == 1 and not nulls and not feature.unseen.get("train", 0.0):
        yield f"feature {name}: one value in every training row, so it has no information; remove it"
    elif feature.distinct == 0 and feature.unseen.get("train", 0.0) + nulls >= 1:
        yield f"feature {name}: no training row has a value with an id of its own; check vocab or min_count"
    large = [split for split in ("valid", "test") if facts.splits[split].rows >= _ENOUGH]
    for split in large:
        gap = feature.nulls.get(split, nulls) - nulls
        if abs(gap) >= _NULLS:
            yield (
                f"feature {name}: null in {nulls:.0%} of the rows of train and in {feature.nulls[split]:.0%} of {split}"
            )
    is_key = schema.column(name) in (schema.user, schema.item)  # new users and items are counted by split
    unseen = feature.unseen.get("test", 0.0)
    if "test" in large and not is_key and unseen >= _RARE and unseen >= 2 * feature.unseen.get("train", 0.0):
        yield f"feature {name}: {unseen:.0%} of its values in test do not occur in train"
