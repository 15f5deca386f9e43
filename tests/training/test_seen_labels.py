"""Tests that warm starts have not seen the labels of their own evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.errors import ConfigError, RunError
from longrec.training.compress import _open_source
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.seen_labels import KEY, SeenLabels, find_start_fault, read_seen_labels

DAY = 86_400
START = 1_700_006_400  # midnight
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "features": {"item": {"kind": "id", "vocab": list(range(5))}, "user": {"kind": "id", "vocab": list(range(40))}},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a log of ten days with forty impressions per day."""
    random, n = np.random.default_rng(3), 400
    table = pa.table(
        {
            "user": random.integers(0, 40, n),
            "item": random.integers(0, 5, n),
            "t": START + np.arange(n) * DAY // 40,
            "click": random.integers(0, 2, n),
            "press": random.integers(0, 2, n),
            "told": START + np.arange(n) * DAY // 40 + 2 * DAY,
            "heard": START + np.arange(n) * DAY // 40 + DAY,
        }
    )
    path = tmp_path_factory.mktemp("seen") / "log.parquet"
    pq.write_table(table, path)
    return path


def days(valid: int, test: int) -> dict[str, str]:
    """Return a split at the beginning of days."""
    return {"valid_from": _day(valid), "test_from": _day(test)}


def _day(day: int) -> str:
    return str(np.datetime64(START + day * DAY, "s"))


def fit(log: Path, split: dict[str, Any], start: Run | None = None, fit: Any = None, **schema: Any) -> Run:
    settings = {
        "epochs": 1,
        "max_steps": 2,
        "batch_size": 64,
        "runs": str(log.parent / "runs"),
        "tensorboard": "off",
        "mlflow": "off",
        **({} if start is None else {"init_from": str(start.folder)}),
        **(fit or {}),
    }
    data = {"log": str(log), "folder": str(log.parent / "prepared"), "schema": {**SCHEMA, **schema}, "split": split}
    evaluate = {"n_resamples": 2, "resample": "row"}
    return train({"data": data, "model": {"name": "lr"}, "fit": settings, "evaluate": evaluate}, quiet=True)


@pytest.fixture(scope="module")
def early(log: Path) -> Run:
    return fit(log, days(4, 5))


@pytest.fixture(scope="module")
def late(log: Path) -> Run:
    return fit(log, days(7, 8))


def test_a_run_keeps_what_it_has_seen(early: Run) -> None:
    seen = read_seen_labels(early)
    assert (seen.trained, seen.validated) == ((START + 4 * DAY) * 1_000, (START + 5 * DAY) * 1_000)
    assert seen.delays == {"click": 0, "t": None}
    assert SeenLabels.from_dict(seen.to_dict()) == seen


def test_forward_in_time_and_on_the_same_split_runs_may_start(log: Path, early: Run) -> None:
    for split in (days(4, 5), days(4, 6), days(5, 6), days(8, 9)):
        assert "init_from" not in str(fit(log, split, early).results["warnings"])


def test_weights_from_the_future_are_refused_with_both_lines(log: Path, late: Run) -> None:
    with pytest.raises(RunError) as caught:
        fit(log, days(4, 5), late)
    message = str(caught.value)
    assert (
        "trained on labels available until 2023-11-22T00:00:00Z, and here valid and test begin at 2023-11-19" in message
    )
    assert "validated on labels available until 2023-11-23T00:00:00Z, and here test begins at 2023-11-20" in message
    with pytest.raises(RunError, match="that run was validated on labels available until 2023-11-23") as caught:
        fit(log, days(7, 7), late)
    assert "trained on" not in str(caught.value)


def test_allowed_by_name_results_say_so(log: Path, late: Run) -> None:
    run = fit(log, days(4, 5), late, {"allow_future_weights": True})
    (message,) = (sentence for sentence in run.results["warnings"] if "init_from" in sentence)
    assert "The weights may be trained or validated on labels that this run is evaluated on" in message
    assert read_seen_labels(run).trained == read_seen_labels(late).trained, "and the next run in the chain knows it"
    with pytest.raises(RunError, match="that run was trained on labels available until 2023-11-22"):
        fit(log, days(4, 5), run)
    assert "init_from" not in str(fit(log, days(8, 9), run).results["warnings"])
    with pytest.raises(ConfigError, match="allow_future_weights is given without init_from"):
        fit(log, days(4, 5), None, {"allow_future_weights": True})


def test_a_shorter_delay_of_the_run_before_is_no_way_around(log: Path, early: Run) -> None:
    """It trained on labels that were not available yet by the delays of this run."""
    with pytest.raises(
        RunError, match="trained on labels available until 2023-11-21T00:00:00Z, and here valid and test"
    ):
        fit(log, days(4, 5), early, label_delay="2d")
    assert "init_from" not in str(fit(log, days(6, 8), early, label_delay="2d").results["warnings"])


def test_a_run_that_assumed_shorter_delays_is_refused(log: Path, early: Run) -> None:
    message = {"time": {"column": "t", "unit": "s", "available_at": "told"}}
    with pytest.raises(RunError, match="the labels of that run are unknown"):
        fit(log, days(4, 5), early, **message)
    fit(log, days(4, 5), fit(log, days(4, 5), **message))
    click = {"kind": "id", "vocab": [0, 1], "feedback": True}
    heard, seen = (
        {"features": {**SCHEMA["features"], "click": {**click, "available_at": c}}} for c in ("heard", "told")
    )
    before = fit(log, days(4, 5), **heard)
    fit(log, days(4, 5), before, **heard)
    with pytest.raises(RunError, match="the labels of that run are unknown"):
        fit(log, days(4, 5), before, **seen)
    press = fit(log, days(4, 5), label="press")  # at once, as it says, and here after two days
    late = {"features": {**SCHEMA["features"], "press": {**click, "available_after": "2d"}}}
    with pytest.raises(
        RunError, match="trained on labels available until 2023-11-21T00:00:00Z, and here valid and test"
    ):
        fit(log, days(4, 5), press, **late)


@pytest.mark.parametrize("split", [{"by": "user", "valid": 0.2, "test": 0.3}, {"by": "leave_one_out"}], ids=str)
def test_without_a_line_only_the_same_split_starts(log: Path, early: Run, split: dict[str, Any]) -> None:
    run = fit(log, split)
    fit(log, split, run)
    with pytest.raises(RunError, match="that run was trained on labels available until 2023-11-"):
        fit(log, days(4, 5), run)
    with pytest.raises(RunError, match="that run was trained on labels available until"):
        fit(log, split, run, label_delay="1d")
    if split["by"] == "user":
        with pytest.raises(RunError, match="that run was trained on labels available until 2023-11-19"):
            fit(log, split, early)
        with pytest.raises(RunError, match="that run was trained on labels available until"):
            fit(log, {**split, "seed": 1}, run)


def test_runs_without_seen_labels_are_checked_by_their_log(log: Path, tmp_path: Path) -> None:
    """Runs of version 0.3 trained on all labels of train, available or not, and have no record of it."""
    old = fit(log, days(7, 8), label_delay="12h")
    about = json.loads((old.folder / "log.json").read_text())
    del about[KEY]
    (old.folder / "log.json").write_text(json.dumps(about))
    seen = read_seen_labels(old)
    assert seen.trained is not None
    assert (START + 7 * DAY) * 1_000 < seen.trained < (START + 8 * DAY) * 1_000
    # A checkpoint writes tokens of impressions alone that come after every label it has seen.
    assert _open_source(old, True)[-1] == max(int(old.log().manifest["lines"][1]), seen.validated or 0)
    with pytest.raises(RunError, match="trained on labels available until 2023-11-22T11"):
        fit(log, days(7, 8), old, label_delay="12h")
    assert "init_from" not in str(fit(log, days(8, 9), old, label_delay="12h").results["warnings"])
    (old.folder / "log.json").write_text(json.dumps({**about, "path": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match="its prepared log cannot be opened"):
        fit(log, days(8, 9), old, label_delay="12h")


def test_steps_of_two_logs_are_not_compared(early: Run) -> None:
    log, seen = early.log(), read_seen_labels(early)
    assert find_start_fault(replace(seen, splits=("other",)), log) == ""
    for other in (replace(seen, step=True), replace(seen, trained=None, validated=None)):
        assert "are unknown" in find_start_fault(replace(other, splits=("other",)), log)
    assert "are unknown" in find_start_fault(replace(seen, delays={"click": "told"}), log)
