from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from longrec.errors import LongRecError
from longrec.metrics import Interval, compare
from longrec.reporting import comparison_table, metrics_table, results_table, table, write_json


def test_numbers_align_right_text_aligns_left():
    text = table(["run", "rows", "AUC", "done"], [["deepfm", 1000209, 0.78, True], ["x", 5, None, False]])
    assert text.splitlines() == [
        "run          rows     AUC  done",
        "------  ---------  ------  ----",
        "deepfm  1,000,209  0.7800  yes",
        "x               5       -  no",
    ]


def test_wide_and_combining_letters_are_counted_by_their_cells():
    lines = table(["film", "n"], [["千と千尋", 1], ["Ame\u0301lie", 2], ["Brazil", 3]]).splitlines()
    assert lines[2] == "千と千尋  1"
    assert lines[3] == "Ame\u0301lie    2"
    assert lines[4] == "Brazil    3"


def test_a_cell_stays_on_its_line_and_rows_fit_their_heads():
    assert len(table(["a"], [["x\ny"]]).splitlines()) == 3
    assert table(["a", "b"], []).splitlines() == ["a  b", "-  -"]
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headers"):
        table(["a", "b"], [["x"]])


def test_metrics_and_comparisons_read_as_tables():
    y, u = np.tile([1, 0], 60), np.repeat(np.arange(30), 4)
    p = np.linspace(0.1, 0.9, 120)
    comparison = compare(y, {"fm": p, "din": np.clip(p + 0.3 * y - 0.2, 0, 1)}, u, baseline="fm", n_resamples=20)
    text = comparison_table(comparison.to_dict())
    auc = comparison.differences["din"]["auc"].interval
    assert f"{auc.value:+.4f} [{auc.low:+.4f}, {auc.high:+.4f}]" in text
    assert "better" in text
    assert "baseline" in text
    assert len([line for line in text.splitlines() if not line.startswith("warning: ")]) == 3 + 6 * 2
    assert text.splitlines()[0] == "120 rows, 30 users, 60 positive"
    named = compare(y, {"fm": 0.6 - 0.2 * y, "din": p}, u, n_resamples=20, split="valid").to_dict()
    lines = comparison_table(named).splitlines()
    assert lines[0] == "on valid: 120 rows, 30 users, 60 positive"
    assert lines[1].startswith("metric on valid ")
    assert [line for line in lines if line.startswith("warning: fm: AUC on valid is ")]
    text = metrics_table({"fm": comparison.runs["fm"], "old": {"auc": Interval.undefined(), "hits": Interval(1, 1, 1)}})
    assert text.splitlines()[2].startswith("AUC")
    assert text.splitlines()[2].endswith("undefined")
    assert text.splitlines()[-1].startswith("hits")


def test_results_read_as_a_table():
    content = {"model": "din", "split": "test", "rows": 1200, "users": 30, "positives": 600}
    lines = results_table("run1", {**content, "metrics": {"auc": Interval(0.7, 0.6, 0.8)}}).splitlines()
    assert lines[0] == "run1 (din) on test: 1,200 rows, 30 users, 600 positive"
    assert lines[-1] == "AUC             0.7000 [0.6000, 0.8000]"
    assert lines[1].split() == ["metric", "on", "test", "run1"]


@dataclass
class Thing:
    value: float
    where: Path


def test_json_is_plain_whatever_goes_in(capsys):
    content = {
        "n": np.int64(3),
        "x": float("nan"),
        "a": np.arange(2),
        "i": Interval(1.0, 0.5, 2.0),
        5: Thing(0.5, Path("a")),
    }
    write_json(content, "-")
    assert json.loads(capsys.readouterr().out) == {
        "n": 3,
        "x": None,
        "a": [0, 1],
        "i": {"value": 1.0, "low": 0.5, "high": 2.0},
        "5": {"value": 0.5, "where": "a"},
    }


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "out.json"
    write_json({"a": "é"}, target)
    with pytest.raises(TypeError, match="no JSON form for object"):
        write_json({"a": object()}, target)
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": "é"}
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LongRecError, match=r"(?s)cannot be written.*folder you may write to"):
        write_json({}, tmp_path / "file" / "out.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LongRecError, match="cannot be written"):
        write_json({}, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
