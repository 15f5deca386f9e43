"""Logs of positives only: without a label, or with one that is always 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_logs import SCHEMA, N, log

from longrec import commands
from longrec.data.gather import gather
from longrec.data.label_checks import ONLY_POSITIVES, check_classes, check_window
from longrec.data.log import Log
from longrec.errors import DataError, RequestError
from longrec.features.column_delays import compute_column_delays
from longrec.features.label_encoding import LABEL, POSITIVE
from longrec.features.schema import Schema
from longrec.serve.feedback import Feedback, FeedbackReader, encode_side
from longrec.training.fit import train
from longrec.training.job import read_job
from longrec.training.objectives import OBJECTIVES
from longrec.training.seen_labels import compute_seen_labels

Prepared = Callable[..., Log]
UNLABELED = {key: value for key, value in SCHEMA.items() if key != "label"}
POSITIVES = log(click=[1] * N)


def write_config(folder: Path, schema: dict[str, Any]) -> dict[str, Any]:
    pq.write_table(POSITIVES, folder / "log.parquet")
    data = {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "threads": 1, "schema": schema}
    return {"data": data, "model": "din", "fit": {"runs": str(folder / "runs"), "device": "cpu"}}


def test_every_event_is_a_positive(prepared: Prepared) -> None:
    one = prepared(log(), UNLABELED)
    assert np.asarray(one.labels).tolist() == [1.0] * N
    assert one.schema.label is None
    assert one.manifest["parts"]["train"] == {"samples": 32, "positives": 32}
    assert ONLY_POSITIVES in one.warnings
    assert len(one.rows_of("train")) == 32
    batch = gather(one, np.arange(N))
    assert batch.label.tolist() == [1.0] * N
    assert batch.label_time is not None
    assert batch.label_time.tolist() == one.events.times.tolist()
    seen = compute_seen_labels(one, ())
    assert list(seen.delays) == ["t"]


def test_a_feedback_column_keeps_its_delay(prepared: Prepared) -> None:
    """The delay of feedback needs no label, and that an event happened is available with the event."""
    delayed = prepared(log(), {**UNLABELED, "label_delay": "3m"})
    assert compute_column_delays(delayed.schema)["click"] == 180_000
    assert delayed.schema.longest_label_delay == 0
    assert not delayed.has_delayed_labels
    not_yet = delayed.fitted.get_not_yet_id("click")
    values = gather(delayed, np.arange(N)).histories["all"].columns["click"].tolist()
    assert not_yet in values
    assert set(values) - {not_yet}


def test_a_label_that_is_always_positive_prepares_with_a_warning(prepared: Prepared, tmp_path: Path) -> None:
    one = prepared(POSITIVES, SCHEMA)
    assert ONLY_POSITIVES in one.manifest["warnings"]
    assert ONLY_POSITIVES in commands.prepare(write_config(tmp_path, SCHEMA))["warnings"]
    assert ONLY_POSITIVES not in prepared(log(), SCHEMA).warnings


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            SCHEMA,
            r"column 'click': every training label is 1; expected both classes\n  Check the condition of the label",
        ),
        (UNLABELED, r"every event a positive: every training label is 1; expected both classes\n  Set label in the"),
    ],
)
def test_a_ranker_is_refused_before_training(tmp_path: Path, schema: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        train(write_config(tmp_path, schema), quiet=True)
    assert "label 0 for impressions without a click" in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_a_retriever_is_not_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, UNLABELED)
    one, job = Log.open(commands.prepare(config)["folder"]), read_job(config)
    with pytest.raises(DataError, match="every training label is 1"):
        OBJECTIVES["clicks"].check_log(one, job.fit, job.evaluate)
    check_window(one, both_classes=False)


def test_two_classes_pass(prepared: Prepared) -> None:
    check_classes(prepared(log(), SCHEMA))


def test_a_window_without_negatives_is_refused_for_a_ranker_alone(prepared: Prepared) -> None:
    table = pa.table({"user": range(10), "item": [0] * 10, "t": range(10), "click": [1, 1, 1, 1, 0, 0, 0, 1, 0, 1]})
    schema = {
        **{key: SCHEMA[key] for key in ("user", "item", "label")},
        "time": {"column": "t", "unit": "step"},
        "label_delay": 2,
        "features": {"item": {"kind": "id"}},
    }
    one = prepared(table, schema, split={"valid_from": 6, "test_from": 8})
    check_window(one, both_classes=False)
    with pytest.raises(DataError, match="2 rows are left out.*; every other label is 1"):
        check_window(one)


def test_a_log_without_training_rows_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, UNLABELED)
    config["data"]["split"] = {"valid_from": "1990-01-01", "test_from": "1990-01-02"}
    with pytest.raises(DataError, match="no training row has a label"):
        commands.prepare(config)


def test_feedback_of_a_bundle_without_a_label() -> None:
    schema = Schema.model_validate(UNLABELED)
    reader = FeedbackReader([schema])
    assert reader.read({"click": 1}, at=5, now=9).values == {"click": 1}
    with pytest.raises(RequestError, match="the unknown key 'label'"):
        reader.read({LABEL: 1}, at=5, now=9)
    fitted: Any = SimpleNamespace(schema=schema)
    assert encode_side(fitted, LABEL, Feedback({}, at=5, now=9)) == (POSITIVE, 9)
    without = Schema.model_validate({**UNLABELED, "features": {"item": {"kind": "id"}}, "histories": {}})
    with pytest.raises(RequestError, match="expected no feedback"):
        FeedbackReader([without]).read({"x": 1}, at=5, now=9)
