"""Tests of text for the terminal: tables of at most 100 columns, whatever their cells hold, and wrapped docstrings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longrec.cli import main
from longrec.metrics import Interval
from longrec.reporting.tables import comparison_table, metrics_table, results_table
from longrec.terminal_text import WIDTH, measure_width, table, wrap_docstring, wrap_text

RUN = "shop-din-attention-80-40-embedding-32-" + "x" * 70
OTHER = "runs/" + "千と千尋の神隠し" * 6


def find_long_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if measure_width(line) > WIDTH]


def make_metrics() -> dict[str, dict[str, Any]]:
    value = Interval(0.78, 0.7712345, 0.79).to_dict()
    keys = ("auc", "gauc", "log_loss", "normalized_entropy", "normalized_entropy.added_to_the_shopping_cart_later")
    return {key: value for key in keys}


def test_a_table_that_fits_is_not_changed() -> None:
    text = table(["run", "rows"], [["a b", 1000], ["c", 2]])
    assert text.splitlines() == ["run   rows", "---  -----", "a b  1,000", "c        2"]


def test_long_text_is_wrapped_in_its_column() -> None:
    text = table(["name", "n", "meaning"], [["feature", 7, "word " * 60], ["x", 12345, "short"]])
    lines = text.splitlines()
    assert not find_long_lines(text)
    assert lines[0].split() == ["name", "n", "meaning"]
    assert lines[2].startswith("feature       7  word word")
    assert lines[3].startswith(" " * 17 + "word word")
    assert lines[-1] == "x        12,345  short"


def test_numbers_are_never_broken() -> None:
    text = table(["metric", "v" * 80, "w" * 80], [["AUC", "0.7800 [0.7700, 0.7900]", 0.5], ["b", "-", None]])
    assert (
        "0.7800 [0.7700, 0.7900]  0.5000" in " ".join(text.split("  ")).replace("   ", "  ")
        or "0.7800 [0.7700, 0.7900]" in text
    )
    assert not find_long_lines(text)


def test_too_many_columns_of_numbers_become_blocks_with_the_first_column() -> None:
    text = table(["metric", *(f"run-{n}" for n in range(9))], [["AUC", *["0.7800 [0.7700, 0.7900]"] * 9]])
    assert not find_long_lines(text)
    blocks = text.split("\n\n")
    assert len(blocks) == 3
    assert all(block.startswith("metric") and "\nAUC" in block for block in blocks)
    assert [f"run-{n}" in text for n in range(9)] == [True] * 9


@pytest.mark.parametrize("runs", [(RUN, OTHER), ("a", "b"), (RUN, "b"), ("a", OTHER)])
def test_results_and_comparisons_of_long_names_fit(runs: tuple[str, str]) -> None:
    metrics = make_metrics()
    signed = {key: {**value, "verdict": "unclear"} for key, value in metrics.items()}
    comparison = {"runs": dict.fromkeys(runs, metrics), "baseline": runs[0], "differences": {runs[1]: signed},
                  "rows": 10, "users": 3, "positives": 2, "split": "test"}  # fmt: skip
    text = comparison_table(comparison)
    assert not find_long_lines(text[text.index("metric on test") :])  # before it, a name is in one piece
    assert "+0.7800 [+0.7712, +0.7900]" in text
    long = max(map(measure_width, runs)) > 24
    assert (f"run 1: {runs[0]}\nrun 2: {runs[1]}\nmetric on test" in text) == long
    assert ("minus run 1" in text) == long
    results = {"model": "din", "split": "test", "rows": 10, "users": 3, "positives": 2, "metrics": metrics}
    head, *lines = results_table(runs[1], results).splitlines()
    assert head.startswith(f"{runs[1]} (din) on test")
    assert not find_long_lines("\n".join(lines))
    intervals = {key: Interval.from_dict(value) for key, value in metrics.items()}
    assert not find_long_lines(metrics_table({runs[0]: intervals, runs[1]: intervals, "c": intervals}))


@pytest.mark.parametrize(
    "command", [["models"], ["synthetic"], ["synthetic", "rich_instances"], ["synthetic", "co_action"]]
)
def test_listings_fit(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert not find_long_lines(capsys.readouterr().out)


def test_check_wraps_the_list_of_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    names = [f"feature-number-{n}" for n in range(40)]
    pq.write_table(pa.table({"u": [1], "i": [1], "t": [1], "y": [1], **{name: [1] for name in names}}), "log.parquet")
    features = {"i": {"kind": "id"}, **{name: {"kind": "id"} for name in names}}
    histories = {f"h{n}": {"features": ["i"]} for n in range(20)}
    schema = {"user": "u", "item": "i", "time": "t", "label": "y", "features": features, "histories": histories}
    Path("job.yaml").write_text(json.dumps({"data": {"log": "log.parquet", "schema": schema}, "model": "din"}))
    assert main(["check", "job.yaml"]) == 0
    out = capsys.readouterr().out
    assert not find_long_lines(out)
    assert out.replace(",", " ").split().count("feature-number-39") == 1
    assert "\n             feature-number-" in out


def test_wrapped_text_keeps_every_letter() -> None:
    for text in (RUN, OTHER, "a  b", "", "x" * 30, "one/two-three_four.five " * 5):
        lines = wrap_text(text, 12)
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(measure_width(line) <= 12 for line in lines)


def test_a_docstring_keeps_its_formulas_and_lists() -> None:
    text = (
        "Title.\n\n" + "word " * 30 + "\n\n    y = f(x)" + " " * 90 + "(eq. 1)\n    - " + "item " * 30 + "\n    - two"
    )
    lines = wrap_docstring(text)
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[:2] == ["Title.", ""]
    (formula,) = [line for line in lines if "y = f(x)" in line]
    assert formula.endswith("(eq. 1)")
    first = next(at for at, line in enumerate(lines) if line.startswith("    - item"))
    assert lines[first + 1].startswith("      item")
    assert lines[-1] == "    - two"
