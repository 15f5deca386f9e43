"""``longrec bench lengths``: what is trained and timed at each length, the files that it writes, and its errors."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.cli import main
from longrec.data import synthetic
from longrec.data.synthetic import generate_dataset
from longrec.errors import BundleError, ConfigError, RunError
from longrec.features.fields import Field, Fields
from longrec.length_command import measure_lengths
from longrec.lengths import cpu_cost
from longrec.lengths.length_chart import draw_lengths
from longrec.lengths.length_study import choose_lengths
from longrec.lengths.measured_lengths import LengthRow, MeasuredLengths
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build, find
from longrec.training.finished_run import open_run
from longrec.training.settings import FitConfig

SVG = "{http://www.w3.org/2000/svg}"
CATEGORY = Field("category", "id", 12, side="item")
SMALL = {"embedding_dim": 4, "mlp": [8]}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Config of a small log whose histories have 60 events."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cpu_cost, "_SECONDS", 0.02)
    dataset = generate_dataset("long_memory", 40, length=60)
    synthetic.write(dataset, tmp_path)
    job = dataset.job(tmp_path, {"name": "pooling", **SMALL}, tensorboard="off", mlflow="off", log_steps=1)
    return {**job, "evaluate": {"n_resamples": 2}}


def write_config(config: dict[str, Any], folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_the_command_measures_every_length(
    log: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(log, tmp_path)
    arguments = ["bench", "lengths", str(path), "--lengths", "200,5,100,20", "--steps", "3"]
    assert main([*arguments, "--into", "out", "--quiet", "--json", "again.json"]) == 0
    text = capsys.readouterr().out
    results = json.loads(Path("out/lengths.json").read_text(encoding="utf-8"))
    assert results == json.loads(Path("again.json").read_text(encoding="utf-8"))
    assert (results["longest"], results["split"], results["candidates"]) == (60, "valid", 100)
    rows = results["rows"]
    assert [row["events"] for row in rows] == [5, 20, 100, 200]
    # 100 is the first length that holds the whole histories, so that 200 would repeat its training.
    assert [row["auc"] is None for row in rows] == [False, False, False, True]
    for row in rows[:3]:
        run = open_run(row["run"])
        assert run.config.schema.histories["events"].max_length == row["events"]
        assert row["auc"] == run.results["valid"]["metrics"]["auc"]["value"]
        assert row["ece"] == run.results["valid"]["metrics"]["ece"]["value"]
        assert row["steps"] == run.results["steps"] == 3
        assert row["train_seconds"] > 0
    assert rows[3]["run"] is None
    assert all(row["is_exported"] and row["request_ms"] > 0 and row["rows_per_second"] > 0 for row in rows)
    lines = [line.split() for line in text.splitlines() if line.startswith("pooling")]
    assert [line[1] for line in lines] == ["5", "20", "100", "200"]
    assert lines[3][2:6] == ["-"] * 4
    assert ElementTree.parse("out/lengths.svg").getroot().tag == f"{SVG}svg"
    assert main([*arguments, "--into", "out"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_other_models_have_default_settings(log: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BundleError("model", "not traced here")

    monkeypatch.setattr(cpu_cost, "trace", refuse)
    settings = ["fit.max_steps=1", "model.embedding_dim=6"]
    result = measure_lengths(log, settings, models=["pooling", "sim"], lengths=[4], into="out", quiet=True)
    own, other = (open_run(str(row.run)).config.model for row in result.rows)
    assert (own["name"], own["embedding_dim"], own["mlp"]) == ("pooling", 6, [8])
    assert (other["name"], other["mlp"]) == ("sim", list(find("sim").Config.model_fields["mlp"].default))
    assert not any(row.is_exported for row in result.rows)
    assert "Requests of pooling, sim run in torch" in result.to_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ["lr", "deepfm"]}, r"(?s)model lr: reads no history.*model deepfm: reads no history"),
        ({"models": ["covisit"], "overrides": ["fit={}"]}, "model covisit: is no ranker of single items"),
        ({"models": ["dinn"]}, "did you mean 'din'"),
        ({"lengths": [0, 7]}, r"--lengths: must be from 1 to 1,000,000, got 0"),
        ({"lengths": []}, r"--lengths: must name one length or more"),
    ],
    ids=["models", "kind", "name", "length", "none"],
)
def test_faults_are_refused_before_anything_is_trained(log: dict[str, Any], options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        measure_lengths(log, **options, into="out")
    assert not Path("out").exists()


def test_a_log_without_histories_and_a_used_folder_are_refused(log: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(RunError, match="is not empty"):
        measure_lengths(log, lengths=[5], into="out")
    with pytest.raises(ConfigError, match="the schema has no history to cut"):
        measure_lengths(log, ["data.schema.histories={}", "model={name: lr}"], into="new")


def test_lengths_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "lengths", "x.yaml", "--lengths", "50,many"]) == 2
    assert "--lengths: must be whole numbers such as 50,200,1000, got '50,many'" in capsys.readouterr().err


def test_default_lengths_end_at_the_longest() -> None:
    assert choose_lengths(30) == [30]
    assert choose_lengths(2_000) == [50, 100, 200, 500, 1_000, 2_000]


def test_a_step_has_fewer_rows_of_longer_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_cost, "EVENTS", 1_000)
    monkeypatch.setattr(cpu_cost, "_REPEATS", 1)
    model = build({"name": "pooling", **SMALL}, Fields((CATEGORY,), {"seen": (CATEGORY,)}))
    assert isinstance(model, Ranker)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rows = [cpu_cost.measure_step(model, FitConfig(batch_size=64), events).rows for events in (10, 50, 1_000)]
    assert rows == [64, 20, 8]
    assert any((old != new).any() for old, new in zip(before, model.parameters()))


def draw(values: dict[str, tuple[float | None, ...]]) -> ElementTree.Element:
    """The picture of two models with these values at 50, 60 and 10,000 events."""
    rest = dict.fromkeys(("auc", "log_loss", "ece", "pcoc", "train_seconds", "steps", "megabytes_per_row", "run"))
    rows = [
        LengthRow(
            model, events, **{**rest, "auc": auc}, step_rows=8, rows_per_second=7e4 / events, request_ms=1.0,
            is_exported=True,
        )
        for model, aucs in values.items()
        for events, auc in zip((50, 60, 10_000), aucs)
    ]  # fmt: skip
    return ElementTree.fromstring(draw_lengths(MeasuredLengths(rows, "valid", 60, 100, {})))


def test_the_picture_has_a_line_per_model_and_figure() -> None:
    root = draw({"din": (0.5, 0.7, None), "a<b": (0.5, 0.6, None)})
    titles = [one.text for one in root.iter(f"{SVG}text") if one.get("class") == "title"]
    assert titles == ["din", "a<b", "AUC", "training rows per CPU-second", "request, CPU-ms"]
    lines = [one.get("points", "").split() for one in root.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [2, 2, 3, 3, 3, 3]
    # Up to 10,000, the labels of 50 and 60 would overlap.
    labels = [one.text for one in root.iter(f"{SVG}text") if one.get("text-anchor") == "middle"]
    axis = "events of a history"
    assert labels == ["50", "60", axis, *["60", "10,000", axis] * 2]
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights[0] > heights[1]  # up is better


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios() -> None:
    root = draw({"din": (0.5, 0.5, 0.5)})
    speed = [one.get("points", "").split() for one in root.iter(f"{SVG}polyline")][1]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in speed)
    # Rows per second are inversely proportional to the events: a straight line on two logarithmic axes.
    assert (y1 - y0) / (x1 - x0) == pytest.approx((y2 - y0) / (x2 - x0), rel=0.05)
    assert np.isfinite([x0, y0, x1, y1, x2, y2]).all()
