from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.targets import check_targets
from longrec.data.training_window import TrainingWindow
from longrec.errors import ConfigError
from longrec.features.history_columns import NEVER
from longrec.training.loaders import build_loader

START = 1_600_000_000_000
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "ms"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "like": {"kind": "id", "feedback": True},
        "buy": {"kind": "id", "feedback": True, "available_after": "10s"},
        "back": {"kind": "id", "feedback": True, "available_at": "back_at"},
        "stars": {"kind": "id", "feedback": True},
        "hashed": {"kind": "id", "hash": 4, "feedback": True, "column": "like"},
        "rare": {"kind": "id", "min_count": 3, "feedback": True, "column": "like"},
        "late": {"kind": "id", "feedback": True},
    },
}
N = 20


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    """One impression a second; the window of training ends at second 14."""
    t = START + np.arange(N) * 1_000
    # What comes back, comes back five seconds later; every fourth never does.
    back_at = [None if row % 4 == 0 else int(timestamp) + 5_000 for row, timestamp in enumerate(t)]
    table = pa.table(
        {
            "user": np.arange(N) % 3,
            "item": np.arange(N) % 5,
            "t": t,
            "click": np.arange(N) % 2,
            "like": pa.array([None if row == 3 else row % 2 for row in range(N)], pa.int64()),
            "buy": [str(row % 2) for row in range(N)],
            "back": (np.arange(N) // 2) % 2,
            "back_at": pa.array(back_at, pa.int64()),
            "stars": np.arange(N) % 4,
            "late": np.arange(N) // 15,  # nobody did it in the training window
        }
    )
    split = {"by": "time", "valid_from": "2020-09-13T12:26:54", "test_from": "2020-09-13T12:26:57"}
    return prepared(table, SCHEMA, split=split)


def column(log: Log, name: str, available_before: int | None = None) -> list[float | None]:
    """A target of every row of the log, in the order of time; None for NaN."""
    values = gather(log, np.arange(N), [name], available_before).task_labels[name].numpy()
    ordered = values[np.argsort(log.events.times, kind="stable")]
    return [None if np.isnan(value) else float(value) for value in ordered]


def test_11_label_masks_of_values_that_are_missing_or_not_available_in_the_window(log: Log) -> None:
    assert log.training_window.train.tolist() == [START + 14_000]
    plain = [None if row in (3, *range(14, N)) else row % 2 for row in range(N)]
    assert column(log, "like") == plain
    # known ten seconds after: the row of second 4 at second 14, which is too late
    assert column(log, "buy") == [row % 2 if row < 4 else None for row in range(N)]
    assert column(log, "back") == [(row // 2) % 2 if row % 4 and row + 5 < 14 else None for row in range(N)]


def test_11_label_masks_move_with_the_timestamp_of_learning(log: Log) -> None:
    assert column(log, "buy", START + 16_001) == [row % 2 if row <= 6 else None for row in range(N)]
    assert column(log, "buy", NEVER) == [row % 2 for row in range(N)]
    assert column(log, "back", NEVER)[0] is None  # what never became known has no value, whenever one looks


def test_a_batch_keeps_its_labels(log: Log) -> None:
    """Nothing that happens to the log afterwards reaches a batch, and a batch holds no log."""
    opened = Log.open(log.folder)
    batch = gather(opened, np.arange(N), ["buy"])
    before = batch.task_labels["buy"].clone()
    opened.training_window = TrainingWindow(np.array([START]), np.array([START]), START, START)
    np.testing.assert_array_equal(batch.task_labels["buy"].numpy(), before.numpy())
    assert gather(opened, np.arange(N), ["buy"]).task_labels["buy"].isnan().all()
    assert type(batch.task_labels) is dict


def test_no_target_is_a_feature_of_the_impression(log: Log) -> None:
    """The leak rules stay: feedback reaches a loss, never an input."""
    assert gather(log, np.arange(3)).task_labels == {}
    batch = gather(log, np.arange(3), ["like", "buy"])
    assert set(batch.features) == {"user", "item"}
    assert set(batch.task_labels) == {"like", "buy"}


def test_what_is_no_target_is_refused_with_what_to_do(log: Log) -> None:
    check_targets(log, ["like", "buy"])
    with pytest.raises(ConfigError) as caught:
        check_targets(log, ["liked", "user", "stars", "hashed", "rare"])
    faults = caught.value.faults
    assert "'liked' is no feature; did you mean 'like'?" in faults[0]
    assert "'user' is no feedback" in faults[1]
    assert "'stars' has the value 2; a target has 0 and 1" in faults[2]
    assert "'hashed' is of kind id; a target is an id with the values 0 and 1, without hash" in faults[3]
    assert "'rare' has min_count: 3; a target must keep all values" in faults[4]
    with pytest.raises(ConfigError, match="'late' is 0 in every training row where it was available"):
        check_targets(log, ["late"])
    early = Log.open(log.folder)
    early.training_window = TrainingWindow(np.array([START]), np.array([START]), START, START)
    with pytest.raises(ConfigError, match="'like' has no training row where it was available before the split cutoff"):
        check_targets(early, ["like"])
    with pytest.raises(ConfigError, match="'user' is no feedback"):
        gather(log, np.arange(2), ["user"])


class _Learns:
    """What a loader reads of a model of several tasks."""

    user_order = None
    targets = ("like",)


def test_a_loader_computes_the_labels_available_when_the_model_learns(log: Log) -> None:
    model: Any = _Learns()
    for available_before, n_labels in ((None, 13), (START + 5_000, 4), (START, 0)):
        batches = list(build_loader(model, log, np.arange(N), 8, available_before=available_before).epoch(0))
        assert sum(int((~batch.task_labels["like"].isnan()).sum()) for batch in batches) == n_labels
    assert all(batch.task_labels == {} for batch in build_loader(model, log, np.arange(N), 8, shuffle=False).epoch(0))
