from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from longrec.errors import ConfigError, DataError, RunError
from longrec.features.batch import Batch
from longrec.models.din import DIN
from longrec.training import folder, loop
from longrec.training.finished_run import Run, open_run
from longrec.training.fit import train
from longrec.training.job import read_job

Runs = Callable[..., list[str]]
Same = Callable[[Path, Path], None]
Lines = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def straight(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Uninterrupted run."""
    runs = tmp_path_factory.mktemp("straight")
    return train(shop, ["name=straight", f"fit.runs={runs}"], quiet=True)


def test_a_run_folder_is_complete(straight: Run, shop: Path) -> None:
    assert {path.name for path in straight.folder.iterdir()} == {
        ".lock", "checkpoints", "config.yaml", "environment.json", "log.json", "metrics.jsonl", "predictions",
        "results.json", "schema",
    }  # fmt: skip
    job = read_job(shop)
    assert straight.config.data == job.data
    assert (straight.config.name, straight.config.model) == ("straight", job.model)
    environment = json.loads((straight.folder / "environment.json").read_text())
    assert environment["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert environment["threads"] == 1
    assert environment["cpu"]
    results = straight.results
    assert (results["model"], results["split"]) == ("din", "test")
    assert results["stopped"] in ("epochs", "patience")
    assert results["rows"] == len(straight.predictions("test")) == len(straight.log().rows_of("test"))
    assert results["steps"] == 48
    assert 0.5 < straight.metrics["auc"].value < 1
    assert straight.metrics["auc"].low < straight.metrics["auc"].value < straight.metrics["auc"].high
    assert straight.fitted.schema == straight.config.schema
    assert not straight.model().training


def test_metrics_are_written_as_training_goes(straight: Run, lines: Lines) -> None:
    metric_lines = lines(straight.folder)
    valid = [line for line in metric_lines if line["split"] == "valid"]
    assert [line["step"] for line in valid] == [8, 16, 24, 32, 40, 48]
    assert [line["epoch"] for line in valid] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-6)
    assert set(valid[0]) == {"step", "epoch", "split", "auc", "gauc", "log_loss", "normalized_entropy", "pcoc"}
    losses = [line["loss"] for line in metric_lines if line["split"] == "train"]
    assert losses[-1] < losses[0]  # type: ignore[operator]


def test_the_best_checkpoint_is_the_one_measured(straight: Run, lines: Lines) -> None:
    valid = [line for line in lines(straight.folder) if line["split"] == "valid"]
    best = min(valid, key=lambda line: line["log_loss"])  # type: ignore[arg-type,return-value]
    assert straight.results["best_step"] == best["step"]
    assert straight.results["valid"]["metrics"]["auc"]["value"] == pytest.approx(best["auc"])


def test_the_same_seed_gives_the_same_run(straight: Run, shop: Path, runs: Runs, same: Same, lines: Lines) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    same(straight.folder, train(shop, runs(), quiet=True).folder)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    other = train(shop, runs("fit.seed=1", "fit.max_steps=3"), quiet=True)
    assert other.name == "din-2"
    assert lines(other.folder)[0] != lines(straight.folder)[0]
    assert other.results["stopped"] == "max_steps"


@pytest.mark.parametrize("step", [1, 8, 23, 24, 47])
def test_a_stopped_run_resumes_bit_by_bit(
    straight: Run, shop: Path, runs: Runs, same: Same, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Stop by a signal after a step: inside an epoch, after a validation, and around the end of an epoch."""
    steps = 0
    real = DIN.loss

    def count(self: DIN, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DIN, "loss", count)
        with pytest.raises(RunError, match=f"stopped after step {step}\n  Continue it with --resume"):
            train(shop, runs("name=halved"), quiet=True)
    assert steps == step
    half = Path(runs()[0].partition("=")[2]) / "halved"
    with pytest.raises(RunError, match="a run that has not ended"):
        open_run(half)
    with pytest.raises(RunError, match="of this name that has not ended"):
        train(shop, runs("name=halved"), quiet=True)
    same(straight.folder, train(resume=half, quiet=True).folder)


@pytest.mark.parametrize(
    "overrides",
    [
        ["fit.bf16=true", "fit.clip_norm=0.1", "fit.warmup_steps=10", "fit.weight_decay=0.1"],
        ["fit.embedding_optimizer=rowwise_adagrad", "fit.bucket_by_length=true", "fit.monitor=log_loss"],
        ["fit.embedding_optimizer=rowwise_adam", "fit.monitor=gauc", "model={name: deepfm}"],
        ["model={name: lr}", "data.split.valid=0", "fit.negative_rate=0.3"],
        ["fit.negative_rate=0.5", "fit.sample_weight=stars", "evaluate.sample_weight=stars"],
        [
            "model={name: multi_tower, din: {seen: {dropout: 0.2}}}",
            "fit.optimizer=sgd",
            "fit.embedding_optimizer=sgd",
            "fit.momentum=0.9",
            "fit.warmup_steps=4",
            "fit.warmup_from=0.001",
            "fit.schedule={name: exponential, steps: 3, factor: 0.7, hold: 4, staircase: true}",
        ],
        [
            "fit.optimizer=adagrad",
            "fit.embedding_optimizer=adagrad",
            "fit.initial_accumulator_value=0.1",
            "fit.schedule={name: step, at: [8, 12], rates: [0.005, 0.001]}",
        ],
    ],
)
def test_every_option_resumes_bit_by_bit(
    shop: Path, runs: Runs, same: Same, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    overrides = runs("fit.epochs=1", "fit.val_checks_per_epoch=2", *overrides)
    whole = train(shop, [*overrides, "name=whole"], quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_checkpoint_due", lambda self: self.state.step == 9)
        patch.setattr(loop.Loop, "_write_train_line", raise_at(loop.Loop._write_train_line, 10))
        with pytest.raises(KeyError):
            train(shop, [*overrides, "name=halved"], quiet=True)
    state = json.loads((whole.folder.parent / "halved" / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] == 9
    same(whole.folder, train(resume=whole.folder.parent / "halved", quiet=True).folder)


def raise_at(real: Callable[[loop.Loop], None], step: int) -> Callable[[loop.Loop], None]:
    """Simulated crash, which writes no last checkpoint."""

    def wrapped(self: loop.Loop) -> None:
        real(self)
        if self.state.step >= step:
            raise KeyError("planted")

    return wrapped


def test_a_finished_run_is_never_overwritten(straight: Run, shop: Path) -> None:
    overrides = ["name=straight", f"fit.runs={straight.folder.parent}"]
    before = (straight.folder / "results.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="a finished run of this name; expected a new name"):
        train(shop, overrides)
    again = train(shop, overrides, resume=straight.folder)
    assert again.results == straight.results
    assert (straight.folder / "results.json").stat().st_mtime_ns == before


def test_a_resumed_run_keeps_its_config(straight: Run, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit\.lr: 0\.01 in the run, 0\.5 now") as caught:
        train(shop, ["fit.lr=0.5", "data.schema.histories.seen.max_length=3"], resume=straight.folder)
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigError, match="to change it, start a new run"):
        train(overrides=["fit.lr=0.5"], resume=straight.folder)
    with pytest.raises(RunError, match="no such folder"):
        train(resume=tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no config\.yaml"):
        train(resume=tmp_path)
    with pytest.raises(ConfigError, match="needs a config"):
        train()


def test_early_stopping_keeps_the_best_and_resumes(
    shop: Path, runs: Runs, same: Same, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = runs("fit.epochs=30", "fit.lr=0.1", "fit.patience=4", "fit.monitor=auc")
    run = train(shop, [*overrides, "name=whole"], quiet=True)
    valid = [line for line in lines(run.folder) if line["split"] == "valid"]
    values = [line["auc"] for line in valid]
    best = values.index(max(values))
    assert run.results["stopped"] == "patience"
    assert len(values) == best + 1 + 4 < 90
    assert run.results["best_step"] == valid[best]["step"]
    assert run.results["valid"]["metrics"]["auc"]["value"] == pytest.approx(values[best])
    with monkeypatch.context() as patch:
        patch.setattr(
            loop.Loop, "_write_train_line", raise_at(loop.Loop._write_train_line, valid[best + 2]["step"] + 1)
        )
        with pytest.raises(KeyError):
            train(shop, [*overrides, "name=halved"], quiet=True)
    same(run.folder, train(resume=run.folder.parent / "halved", quiet=True).folder)


def test_the_default_keeps_the_lowest_log_loss(shop: Path, runs: Runs, lines: Lines) -> None:
    run = train(shop, runs("fit.epochs=6", "fit.lr=0.1", "fit.patience=0"), quiet=True)
    valid = [line for line in lines(run.folder) if line["split"] == "valid"]
    best = min(valid, key=lambda line: line["log_loss"])
    assert run.results["best_step"] == best["step"] != max(valid, key=lambda line: line["auc"])["step"]
    assert run.results["valid"]["metrics"]["log_loss"]["value"] == pytest.approx(best["log_loss"])


def test_without_valid_rows_the_last_model_counts(shop: Path, runs: Runs) -> None:
    run = train(shop, runs("data.split.valid=0", "fit.max_steps=6"), quiet=True)
    assert (run.results["best_step"], run.results["valid"], run.results["split"]) == (6, None, "test")
    assert not (run.folder / "predictions" / "valid.parquet").exists()


def test_a_split_of_one_class_is_refused_before_training(shop: Path, runs: Runs, tmp_path: Path) -> None:
    schema = yaml.safe_load((shop.parent / "shop.schema.yaml").read_text())
    schema["label"] = "bought"
    table = pq.read_table(shop.parent / "events.parquet").sort_by("at")
    for split, low in (("valid", 2_400), ("test", 2_700)):
        bought = [float(row % 2 if not low <= row < low + 300 else 1) for row in range(len(table))]
        pq.write_table(table.append_column("bought", [bought]), tmp_path / f"{split}.parquet")
        config = yaml.safe_load(shop.read_text())
        config["data"] |= {"schema": schema, "log": str(tmp_path / f"{split}.parquet"), "folder": str(tmp_path / "p")}
        config["data"]["items"] = str(shop.parent / "items.parquet")
        with pytest.raises(DataError, match=f"the {split} split: 300 samples that are all 1; expected both classes"):
            train(config, runs(), quiet=True)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError, match="no sample in valid and none in test"):
        train(shop, runs("data.split={valid: 0, test: 0}"), quiet=True)


def test_a_loss_that_is_not_finite_stops_with_advice(shop: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = DIN.loss, 0

    def spoil(self: DIN, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return real(self, batch) * (float("nan") if steps == 7 else 1.0)

    monkeypatch.setattr(DIN, "loss", spoil)
    with pytest.raises(RunError, match=r"step 7: the loss is nan; expected a finite number\n  Lower fit\.lr"):
        train(shop, runs(), quiet=True)


def test_a_batch_of_one_row_is_left_out(shop: Path, runs: Runs) -> None:
    run = train(shop, runs("fit.batch_size=2399", "fit.epochs=1", "model.batch_norm=true"), quiet=True)
    assert run.results["steps"] == 2


def test_a_quiet_run_says_nothing_but_its_warnings(shop: Path, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(shop, runs("fit.max_steps=2"), quiet=True)
    warnings = [line.removeprefix("warning: ") for line in capfd.readouterr().err.splitlines()]
    assert warnings
    assert warnings == run.results["run_warnings"][: len(warnings)]


def test_a_resumed_run_notes_another_environment(shop: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(shop, runs("fit.max_steps=2"), quiet=True)
    for revision in (folder.describe_environment(1)["git"], {"revision": "abc", "changed": False}):
        (run.folder / "results.json").unlink()
        monkeypatch.setattr(
            folder,
            "describe_environment",
            lambda threads, real=folder.describe_environment, git=revision: real(threads) | {"git": git},
        )
        train(resume=run.folder, quiet=True)
    metric_lines = json.loads((run.folder / "environment.json").read_text())
    assert metric_lines["resumed"] == [{"git": {"revision": "abc", "changed": False}}]


def test_two_processes_cannot_train_one_run(straight: Run, shop: Path) -> None:
    with folder.lock_folder(straight.folder), pytest.raises(RunError, match="another process is training this run"):
        train(resume=straight.folder)


def test_trackers_hear_of_losses_and_validations(shop: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[object, ...]] = []
    mlflow = types.ModuleType("mlflow")
    mlflow.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    mlflow.start_run = lambda **named: (said.append(("start", named)), info)[1]  # type: ignore[attr-defined]
    mlflow.log_params = lambda arguments: said.append(("params", arguments["fit.lr"]))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda arguments, step: said.append(("metrics", sorted(arguments), step))  # type: ignore[attr-defined]
    mlflow.end_run = lambda status: said.append(("end", status))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    writer = types.ModuleType("writer")
    board = types.SimpleNamespace(
        add_scalar=lambda *arguments: said.append(("board", arguments[0], arguments[2])),
        close=lambda: said.append(("board closed",)),
    )
    writer.SummaryWriter = lambda folder, purge_step: (said.append(("board from", purge_step)), board)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", writer)
    monkeypatch.setitem(sys.modules, "tensorboard", mlflow)
    overrides = runs("fit.max_steps=10", "fit.mlflow=auto", "fit.tensorboard=auto", "name=tracked")
    run = train(shop, overrides, quiet=True)
    measures = ["train_loss", "valid_auc", "valid_gauc", "valid_log_loss", "valid_normalized_entropy", "valid_pcoc"]
    board_said = [one for one in said if str(one[0]).startswith("board")]
    assert [one for one in said if one not in board_said] == [
        ("start", {"run_name": "tracked"}), ("params", 0.01), ("metrics", measures, 8), ("metrics", measures, 10),
        ("end", "FINISHED"),
    ]  # fmt: skip
    assert [one[1:] for one in board_said if "loss" in str(one[1:])][:2] == [("train/loss", 5), ("train/loss", 8)]
    assert (board_said[0], board_said[-1]) == (("board from", 1), ("board closed",))
    assert ("board", "valid/auc", 8) in board_said
    (run.folder / "results.json").unlink()
    said.clear()
    train(resume=run.folder, quiet=True)
    assert said == [("board from", 11), ("start", {"run_id": "r1"}), ("board closed",), ("end", "FINISHED")]
