"""Reports of runs: what they hold, for one run and several, and what happens when something is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longrec import commands, metrics
from longrec.cli import main
from longrec.data.log import Log
from longrec.errors import ConfigError, RunError
from longrec.training import click_analysis, run_report
from longrec.training.click_analysis import ClickAnalysis, choose_rows, count_rates
from longrec.training.finished_run import Run, open_run
from longrec.training.fit import train
from longrec.training.row_groups import group_rows

QUICK = ["fit.epochs=1", "fit.val_checks_per_epoch=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reported")


@pytest.fixture(scope="module")
def shop(folder: Path, make_shop: Callable[..., Path]) -> Path:
    """Config of a shop with new users and items in test, and histories of all lengths."""
    return make_shop(folder / "shop", users=1_000, items=700, events=4_000)


@pytest.fixture(scope="module")
def din(shop: Path, folder: Path) -> Run:
    return train(shop, ["name=din", f"fit.runs={folder}", *QUICK], quiet=True)


@pytest.fixture(scope="module")
def lr(shop: Path, folder: Path) -> Run:
    overrides = ["model={name: lr}", "data.schema.histories={}", "name=lr", f"fit.runs={folder}"]
    return train(shop, [*overrides, *QUICK], quiet=True)


@pytest.fixture(scope="module")
def log(din: Run) -> Log:
    return din.log()


def read_text(path: Path) -> str:
    """Return the text of a page without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", path.read_text(encoding="utf-8"), flags=re.S))


def test_a_report_of_one_run_has_every_section(din: Run, log: Log) -> None:
    path = din.report()
    assert path == din.folder / "report.html"
    text = read_text(path)
    heads = ["Data", "Metrics on test", "Segments of test", "Learning", "Calibration", "Where scores come from",
             "How it was trained"]  # fmt: skip
    positions = [text.index(head) for head in heads]
    assert positions == sorted(positions)
    assert "4,000 events, " in text
    assert f"{din.metrics['auc'].value:.4f}" in text
    assert "din against item rate :" in text
    assert "Length of history seen" in text
    assert "Positive with the highest score" in text
    table = din.predictions()
    scores = dict(zip(table["row"].to_pylist(), table["score"].to_pylist()))
    assert all(f"Score {scores[row]:.4f}" in text for row in choose_rows(log, table).values())
    assert re.search(r"History seen : \d+ events, those with the largest attention weights first", text)
    environment = json.loads((din.folder / "environment.json").read_text())
    assert environment["started"] in text
    assert environment["command"] in text


def test_references_are_learned_on_train_and_measured_on_the_same_rows(din: Run, log: Log) -> None:
    table = din.predictions()
    constant, by_item = ClickAnalysis().predict_references(log, table, din.config.fit, din.config.evaluate)
    train_rows, label = log.rows_of("train"), table["label"].to_numpy()
    assert set(constant.table["score"].to_pylist()) == {np.float32(log.labels[train_rows].mean())}
    items = log.events.columns["item"]
    item = int(items[table["row"][5].as_py()])
    own = log.labels[train_rows][items[train_rows] == item]
    rate = (own.sum() + 20 * log.labels[train_rows].mean()) / (len(own) + 20)
    assert by_item.table["score"][5].as_py() == pytest.approx(rate)
    text = read_text(din.report())
    assert f"{metrics.auc(label, by_item.table['score'].to_numpy()):.4f}" in text
    assert f"{metrics.log_loss(label, constant.table['score'].to_numpy()):.4f}" in text


def test_rates_skip_labels_that_are_not_available_and_count_weights() -> None:
    label, item = np.array([1, 0, np.nan, 1], np.float32), np.array([1, 1, 1, 2])
    rate, rates = count_rates(label, item, 4, np.array([1, 3, 9, 4], np.float32))
    assert rate == pytest.approx(5 / 8)
    assert rates.tolist() == pytest.approx([5 / 8, (1 + 12.5) / 24, (4 + 12.5) / 24, 5 / 8])


def test_segments_divide_the_rows(din: Run, log: Log) -> None:
    table = din.predictions()
    groups = {group.title: group for group in group_rows(log, table["row"].to_numpy())}
    assert set(groups) == {"User", "Item", "Events of the user in train", "Events of the item in train",
                           "Length of history seen"}  # fmt: skip
    activity = groups["Events of the user in train"]
    counts = np.bincount(log.user(np.flatnonzero(np.asarray(log.splits) == 0)), minlength=len(log.users))
    expected = np.digitize(counts[table["user"].to_numpy()], [1, 10, 100, 1_000, 10_000])
    assert activity.codes.tolist() == expected.tolist()
    assert activity.names[:3] == ("0", "1 to 9", "10 to 99")
    lengths = groups["Length of history seen"]
    assert lengths.names == ("0", "1 to 9", "10 (maximum)")
    own = log.compute_history_lengths("seen", table["row"].to_numpy())
    assert ((own == 10) == (lengths.codes == 2)).all()


def test_a_segment_is_measured_with_an_interval_if_it_has_enough_rows(din: Run) -> None:
    analysis, table, evaluate = ClickAnalysis(), din.predictions(), din.config.evaluate
    values = analysis.measure_segment(table, evaluate)
    assert values["auc"].value == pytest.approx(din.metrics["auc"].value)
    assert values["pcoc"].value == pytest.approx(din.metrics["pcoc"].value)
    assert values["auc"].low < values["auc"].value < values["auc"].high
    assert analysis.measure_segment(table.slice(0, 15), evaluate) == {}


def test_explained_rows_have_long_histories(din: Run, log: Log) -> None:
    table = din.predictions()
    chosen = choose_rows(log, table)
    assert len(set(chosen.values())) == 3
    labels = [float(log.labels[row]) for row in chosen.values()]
    assert labels == [1, 0, 1]
    usual = np.median(log.compute_history_lengths("seen", table["row"].to_numpy()))
    assert (log.compute_history_lengths("seen", np.array(list(chosen.values()))) >= usual).all()


def test_several_runs_are_compared_side_by_side(din: Run, lr: Run, tmp_path: Path) -> None:
    text = read_text(commands.report([lr, din.folder], tmp_path / "both.html"))
    assert "din against lr :" in text
    assert "AUC lr" in text  # columns of the segments
    assert "AUC din" in text
    assert "item rate" in text
    named = commands.report([lr, din])
    assert named == lr.folder.parent / "compare-lr-din.html"
    assert commands.report(str(lr.folder)) == lr.folder / "report.html"


def test_runs_of_other_rows_are_shown_without_differences(din: Run, shop: Path, folder: Path, tmp_path: Path) -> None:
    overrides = ["model={name: lr}", "data.split.test=0.2", "name=other", f"fit.runs={folder}", *QUICK]
    other = train(shop, overrides, quiet=True)
    text = read_text(commands.report([din, other], tmp_path / "p.html"))
    assert "the runs are not compared: test rows of din and other" in text
    assert "against" not in text
    assert "item rate (other)" in text
    assert "Data of other" in text


def test_what_cannot_be_reported_is_refused(din: Run, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run or more"):
        commands.report([])
    with pytest.raises(ConfigError, match="named twice"):
        commands.report([din, din])
    with pytest.raises(RunError, match="no such folder"):
        commands.report(tmp_path / "nothing")


def test_a_run_without_its_log_or_weights_has_a_report(din: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(din.folder, copy)
    (copy / "checkpoints" / "best" / "weights.safetensors").unlink()
    text = read_text(open_run(copy).report())
    assert "samples are left out" in text
    assert "Segments of test" in text
    about = json.loads((copy / "log.json").read_text())
    (copy / "log.json").write_text(json.dumps({**about, "path": str(tmp_path / "gone")}))
    text = read_text(open_run(copy).report())
    assert "references, segments and samples are left out" in text
    assert f"{din.metrics['auc'].value:.4f}" in text
    assert "Calibration" in text
    (copy / "log.json").write_text(json.dumps({**about, "path": str(other_log(din, tmp_path))}))
    assert "a log with other rows than the predictions" in read_text(open_run(copy).report())


def other_log(run: Run, folder: Path) -> Path:
    """Return a copy of the prepared log of a run with other timestamps."""
    log = run.log().folder
    shutil.copytree(log, folder / "log")
    times = np.load(log / "events" / "times.npy")
    np.save(folder / "log" / "events" / "times.npy", times + 1)
    return folder / "log"


def test_a_failed_report_keeps_the_run(
    shop: Path, runs: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("odd rows")

    monkeypatch.setattr(run_report, "group_rows", fail)
    arguments = [str(shop), *runs("name=one", "fit.max_steps=2", *QUICK), "--quiet"]
    assert main(["train", *arguments, "--json", "-"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["report"] is None
    assert "auc" in result["metrics"]
    assert f"warning: no report (ValueError: odd rows); write it with: longrec report {result['run']}" in said.err


def test_train_and_compare_write_reports_by_default(
    shop: Path, runs: Callable[..., list[str]], din: Run, lr: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(shop), *runs("fit.max_steps=2", "model={name: lr}", *QUICK), "--quiet"]
    assert main(["train", *arguments, "name=one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    run = Path(lines[-1])
    assert lines[-2] == f"report: {run / 'report.html'}"
    assert "Metrics on test" in (run / "report.html").read_text()
    assert main(["train", *arguments, "name=two", "--no-report"]) == 0
    assert "report" not in capsys.readouterr().out
    assert not (run.parent / "two" / "report.html").exists()
    assert main(["compare", str(lr.folder), str(din.folder), "--no-report"]) == 0
    assert "report:" not in capsys.readouterr().out
    assert main(["compare", str(lr.folder), str(din.folder)]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert path.name == "compare-lr-din.html"
    assert path.exists()
    assert main(["report", str(din.folder), "--into", str(run / "x.html"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run / "x.html")}


def test_a_model_without_histories_shows_its_features_alone(lr: Run) -> None:
    samples = click_analysis.ClickAnalysis().explain_samples(lr.log(), lr.model(), lr.predictions(), lr.config)
    assert [sample["histories"] for sample in samples] == [{}, {}, {}]
    assert set(samples[0]["features"]) == {"user_id", "item_id", "genre"}
    assert samples[0]["facts"]["User"] == samples[0]["features"]["user_id"]
