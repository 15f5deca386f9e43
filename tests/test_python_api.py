"""The Python interface: logs from frames, models from the notebook, training, and what comes back."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import longrec as lr
from longrec.cli import main
from longrec.errors import ConfigError, DataError, RunError, UnknownName
from longrec.features.batch import Batch
from longrec.models.core.catalog import names
from longrec.models.core.registry import find
from longrec.tabular import Tabular

sys.path.insert(0, str(Path(__file__).parent))  # for python_api, which test modules share
from python_api import SMALL, events, items, schema

FIT: dict[str, Any] = {"epochs": 2, "batch_size": 128, "quiet": True, "seed": 3}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> lr.PreparedLog:
    return lr.prepare(events(), items=items(), schema=schema(), folder=tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def run(shared: lr.PreparedLog, tmp_path_factory: pytest.TempPathFactory) -> lr.Run:
    return lr.fit("din", shared, runs=tmp_path_factory.mktemp("runs"), name="one", **FIT)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Liking(lr.models.Ranker):
    """A model of this file, as one of a notebook: the product of the vectors of user and item, and a bias."""

    class Config(lr.models.EmbeddingConfig):
        scale: float = 1.0

    def __init__(self, config: Config, fields: Any) -> None:
        super().__init__(config, fields)
        from longrec.nn.embedding import Embeddings

        self.embeddings = Embeddings(fields, config.embedding_dim, histories=False, std=0.1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Tensor:
        features = self.embed(batch).features
        return self.config.scale * (features["user"] * features["item"]).sum(1) + self.bias


# ---- prepare -----------------------------------------------------------------------------------------------------


def test_a_log_says_what_it_holds(shared: lr.PreparedLog) -> None:
    assert (shared.rows, shared.users, shared.items) == (1_200, 40, 30)
    assert {name: split.rows for name, split in shared.splits.items()} == {"train": 960, "valid": 120, "test": 120}
    frame = shared.to_pandas()
    assert frame["positives"].tolist() == [split.positives for split in shared.splits.values()]
    assert "1,200 events, 40 users, 30 items, 2026-01-01 00:00 to 2026-02-19 23:00" in repr(shared)
    assert shared.facts.splits["test"].rows == 120
    assert repr(shared.folder.name)[1:-1] in repr(shared)
    assert "<th>positives</th>" in shared._repr_html_()
    assert [field.name for field in shared.fields().features] == ["user", "item", "group"]
    assert shared.warnings == shared.log.warnings
    assert list(shared.schema.features) == ["user", "item", "group"]


def test_the_fields_of_a_model_are_a_table(shared: lr.PreparedLog) -> None:
    fields = shared.fields()
    lines = repr(fields).splitlines()
    assert lines[:2] == ["Fields", "field  history  kind  side  rows  dim"]
    assert len(lines) == 2 + len(fields.features) + sum(map(len, fields.histories.values()))
    assert fields == shared.fields()
    assert "<td>user</td>" in fields._repr_html_()


def test_every_form_of_a_log_is_the_same_log(shared: lr.PreparedLog, here: Path) -> None:
    events().to_parquet("events.parquet")
    items().to_parquet("items.parquet")
    settings = schema().model_dump(mode="json", exclude_unset=True)
    (here / "shop.schema.yaml").write_text(json.dumps(settings))
    job = {"data": {"log": "events.parquet", "items": "items.parquet", "schema": "shop.schema.yaml"}, "model": "din"}
    (here / "din.yaml").write_text(json.dumps(job))
    reference = shared.log.labels.tobytes(), shared.log.events.columns["item"].tobytes()
    logs = [
        lr.prepare("events.parquet", items=Path("items.parquet"), schema=settings),
        lr.prepare(["events.parquet"], items=lr.Source(files="items.parquet"), schema="shop.schema.yaml"),
        lr.prepare("din.yaml"),
        lr.prepare({**job, "data": {**job["data"], "log": events()}}),  # type: ignore[dict-item]
        lr.prepare(here / "din.yaml", overrides=["data.threads=1"]),
    ]
    assert len({log.folder for log in logs}) == 2  # of the file, and of the frame
    for log in logs:
        assert (log.log.labels.tobytes(), log.log.events.columns["item"].tobytes()) == reference


def test_all_faults_of_a_call_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        lr.prepare("events.parquet", items=3, schema={"user": "u", "itm": "i"}, split={"test": 2}, memory="much")
    faults = "\n".join(raised.value.faults)
    for says in (
        "items: must be a mapping",
        "split.test: input should",
        "memory: must be a size",
        "schema.itm: unknown key; did you mean 'item'?",
    ):
        assert says in faults, faults
    with pytest.raises(ConfigError, match="log: no such file: .*events.parquet"):
        lr.prepare("events.parquet", schema=schema())
    with pytest.raises(ConfigError, match="schema: is required for a log"):
        lr.prepare(events())
    with pytest.raises(ConfigError, match="split, folder: the config of a job has these"):
        lr.prepare({"data": {}}, split={"by": "user"}, folder="elsewhere")
    with pytest.raises(ConfigError, match="overrides: are settings of a config"):
        lr.prepare(events(), schema=schema(), overrides=["data.threads=1"])
    with pytest.raises(ConfigError) as raised:
        lr.Schema(user="u", item="i", tim="t", features={"u": "idd", "i": "id"})  # type: ignore[call-arg]
    assert [fault.partition(":")[0] for fault in raised.value.faults] == ["features.u.kind", "tim"]
    with pytest.raises(ConfigError) as raised:
        schema(histories={"a": {"features": ["x"]}, "b": {"features": ["y"]}})
    assert [fault.partition(":")[0] for fault in raised.value.faults][:2] == [
        "histories.a.features",
        "histories.b.features",
    ]


def test_a_bad_value_of_a_frame_names_the_frame() -> None:
    frame = events().assign(click=lambda frame: frame.click.where(frame.index != 5, 7))
    with pytest.raises(DataError, match=r"log \(pandas.DataFrame\).*click"):
        lr.prepare(frame, items=items(), schema=schema())


def test_a_run_of_a_frame_is_used_after_the_process_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Its config has the record of the frame, which finds the prepared log."""
    log = lr.prepare(events(), items=items(), schema=schema())
    first = lr.fit("lr", log, name="first", epochs=1, quiet=True)
    assert lr.prepare(lr.open_run("runs/first")).folder == log.folder
    assert main(["train", "runs/first/config.yaml", "name=second", "--quiet"]) == 0
    assert lr.open_run("runs/second").predictions().equals(first.predictions())
    assert main(["compare", "runs/first", "runs/second"]) == 0
    shutil.rmtree("prepared")
    capsys.readouterr()
    assert main(["train", "runs/first/config.yaml", "name=third", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "log (pandas.DataFrame): 1,200 rows that were in the memory of another process" in said
    with pytest.raises(RunError, match="Prepare it again in Python with the same frames"):
        first.log()
    lr.prepare(events(), items=items(), schema=schema())
    assert first.log().folder == log.folder


# ---- fit ---------------------------------------------------------------------------------------------------------


def test_fit_is_the_training_of_a_config_to_the_bit(shared: lr.PreparedLog, run: lr.Run) -> None:
    """Dropout draws random numbers after those of the weights: a model that was built outside continues with them."""
    settings = {**SMALL, "dropout": 0.3, "attention": (8,)}
    fit = {key: value for key, value in FIT.items() if key != "quiet"}
    data = {"log": events(), "items": items(), "schema": schema()}
    of_config = lr.train({"data": data, "model": {"name": "din", **settings}, "fit": fit}, quiet=True)
    torch.manual_seed(99)
    built = lr.models.DIN(shared.fields(), seed=3, **settings)
    for model in (built, {"name": "din", **settings}):
        of_fit = lr.fit(model, shared, **FIT)
        assert same_weights(of_fit.model(), of_config.model())
        assert of_fit.predictions().equals(of_config.predictions())
        assert of_fit.results["metrics"] == of_config.results["metrics"]
        lines = [
            [{**json.loads(line), "seconds": 0} for line in (one.folder / "metrics.jsonl").read_text().splitlines()]
            for one in (of_fit, of_config)
        ]
        assert lines[0] == lines[1]
    assert not same_weights(of_config.model(), run.model())


def test_warnings_about_a_log_are_printed_by_the_first_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = lr.prepare(events(), items=items(), schema=schema(), folder="warned")
    assert log.warnings
    runs = [lr.fit("deepfm", log, max_steps=1, quiet=True) for _ in range(2)]
    assert capsys.readouterr().err.splitlines() == [f"warning: {warning}" for warning in log.warnings]
    assert all(run.results["warnings"][: len(log.warnings)] == log.warnings for run in runs)


def test_a_built_model_holds_the_best_weights_afterwards(shared: lr.PreparedLog) -> None:
    model = lr.models.DIN(shared.fields(), **SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = lr.fit(model, shared, epochs=1, batch_size=128, quiet=True)
    assert trained.config.fit.seed == 0
    assert same_weights(model, trained.model())
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training
    assert not any("set in Python" in warning for warning in trained.results["warnings"])
    with pytest.raises(ConfigError, match="was trained already, by .*din-1; build a new one"):
        lr.fit(model, shared)


def test_weights_that_were_set_in_python_are_reported(
    shared: lr.PreparedLog, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lr.models.LR(shared.fields())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.add_(0.5)
    trained = lr.fit(model, shared, epochs=1, max_steps=1, quiet=True)
    assert any("weights that were set in Python" in warning for warning in trained.results["warnings"])
    assert "weights that were set in Python" in capsys.readouterr().err


def test_faults_of_fit_are_reported_together(shared: lr.PreparedLog) -> None:
    with pytest.raises(ConfigError) as raised:
        lr.fit({"name": "din", "attentoin": 3}, shared, epcohs=1, lr="fast", evaluate={"unit": "user"}, name="a/b")
    assert [fault.partition(":")[0] for fault in raised.value.faults] == [
        "name", "model.attentoin", "lr", "epcohs", "evaluate.unit",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="log: must be a prepared log, got DataFrame"):
        lr.fit("din", events())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model: must be a model, a class"):
        lr.fit(3, shared)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no model named 'dinn'"):
        lr.fit("dinn", shared)
    with pytest.raises(ConfigError, match="seed: is 4, but the weights of the model were drawn with seed 0; build it"):
        lr.fit(lr.models.LR(shared.fields()), shared, seed=4)
    other = lr.prepare(events(900), items=items(), schema=schema(features={"user": "id", "item": "id"}, histories={}))
    with pytest.raises(ConfigError, match="fields of another log"):
        lr.fit(lr.models.LR(other.fields()), shared)


def test_an_interrupted_fit_continues_with_the_same_call(
    shared: lr.PreparedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lr.fit(Liking, shared, name="whole", **FIT)
    call: dict[str, Any] = {**FIT, "name": "half", "checkpoint_steps": 1}

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longrec.training.objectives.clicks.Clicks.validate", stop)
        with pytest.raises(KeyboardInterrupt):
            lr.fit(Liking, shared, **call)
    with pytest.raises(ConfigError, match="fit.lr: 0.001 in the run, 0.01 now"):
        lr.fit(Liking, shared, resume="runs/half", **{**call, "lr": 0.01})
    half = lr.fit(Liking, shared, resume="runs/half", **call)
    assert same_weights(half.model(), whole.model())
    assert half.predictions().equals(whole.predictions())


def test_an_interrupted_model_is_trained_to_the_end(shared: lr.PreparedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    call: dict[str, Any] = {**FIT, "checkpoint_steps": 1}
    whole, model = (Liking(shared.fields(), seed=3) for _ in range(2))
    lr.fit(whole, shared, name="whole", **call)

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longrec.training.objectives.clicks.Clicks.validate", stop)
        with pytest.raises(KeyboardInterrupt):
            lr.fit(model, shared, name="half", **call)
    with pytest.raises(ConfigError, match="was trained already"):
        lr.fit(model, shared, name="again", **call)
    lr.fit(model, shared, name="half", resume="runs/half", **call)
    assert same_weights(model, whole)


def test_a_run_of_an_own_class_is_a_start_for_the_next(shared: lr.PreparedLog) -> None:
    class Local(Liking):
        """A class that no import finds."""

    first = lr.fit(Local, shared, name="first", epochs=1, quiet=True)
    second = lr.fit(Local, shared, name="second", epochs=1, init_from=first, allow_future_weights=True, quiet=True)
    assert second.config.fit.init_from == str(first.folder)
    assert not same_weights(second.model(), first.model())


@pytest.mark.parametrize("name", ["sasrec", "covisit", "esmm"])
def test_models_of_every_kind_are_fitted(name: str, here: Path) -> None:
    features = {"user": "id", "item": "id", "opened": {"kind": "id", "feedback": True}}
    frame = events(900).assign(opened=lambda frame: frame.click | (frame.index % 3 == 0))
    log = lr.prepare(frame, schema=schema(features=features, histories={"all": {"features": ["item"]}}))
    settings: dict[str, Any] = {"esmm": {"click": "opened"}}.get(name, {})
    model = find(name)(log.fields(), **settings)
    run = lr.fit(model, log, epochs=1, batch_size=256, quiet=True)
    of_name = lr.fit({"name": name, **settings}, log, epochs=1, batch_size=256, quiet=True)
    assert run.results["metrics"] == of_name.results["metrics"]
    assert same_weights(model, of_name.model())


# ---- a model of one's own ----------------------------------------------------------------------------------------


def test_a_class_of_a_notebook_trains_predicts_exports_and_is_loaded_again(shared: lr.PreparedLog) -> None:
    class Twice(Liking):
        """A class that no import finds."""

    own = lr.fit(Twice(shared.fields(), scale=2.0), shared, epochs=1, batch_size=256, quiet=True)
    assert own.folder.name == "Twice-1"
    assert json.loads((own.folder / "checkpoints" / "best" / "model.json").read_text())["config"]["scale"] == 2.0
    assert len(own.predictions()) == 120
    scores = pd.read_parquet(lr.predict(own, "valid"))
    assert len(scores) == 120
    assert lr.export(own, "own.bundle").model == own.config.model["name"]
    again = lr.load_model(own.folder, Twice)
    assert same_weights(again, own.model())
    assert not again.training
    for call in (lambda: lr.open_run(own.folder).model(), lambda: lr.load_model(own.folder)):
        with pytest.raises(ConfigError, match=r"give the class in Python: longrec.open_run\(folder, model=Twice\)"):
            call()
    opened = lr.open_run(own.folder, model=Twice)
    assert same_weights(opened.model(), again)
    assert opened.config.model["scale"] == 2.0
    assert opened.predict(events().head(5)).num_rows == 5, "no import finds its class, and the run has it"
    comparison = lr.compare([opened, lr.fit("lr", shared, epochs=1, quiet=True)])
    assert comparison.rows == 120


def test_a_model_that_embeds_histories_declares_it(shared: lr.PreparedLog) -> None:
    class Undeclared(Liking):
        def __init__(self, config: Any, fields: Any) -> None:
            from longrec.nn.embedding import Embeddings

            super().__init__(config, fields)
            self.embeddings = Embeddings(fields, config.embedding_dim, histories=True)

    with pytest.raises(lr.errors.ConfigError, match="write reads_history = True in class Undeclared"):
        lr.fit(Undeclared(shared.fields()), shared, max_steps=1)
    Undeclared.reads_history = True
    lr.fit(Undeclared(shared.fields()), shared, max_steps=1, quiet=True)


def test_another_class_is_refused_with_the_reason(shared: lr.PreparedLog, run: lr.Run) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        lr.load_model(run.folder, Liking)
    with pytest.raises(RunError, match="no such file|No such file"):
        lr.load_model(Path("nowhere"), Liking)


def test_a_saved_model_is_loaded(shared: lr.PreparedLog) -> None:
    model = Liking(shared.fields(), embedding_dim=3)
    assert lr.save_model(model, "mine") == Path("mine")
    assert same_weights(lr.load_model("mine", Liking), model)


class OfMain(lr.models.LR):
    """A class as a notebook or a script defines it."""


OfMain.__module__ = "__main__"


def test_a_class_of_a_script_is_in_that_process_only(shared: lr.PreparedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "OfMain", OfMain, raising=False)
    trained = lr.fit(OfMain, shared, name="mine", epochs=1, quiet=True)
    assert trained.config.model["name"] == "__main__:OfMain"
    assert type(lr.open_run("runs/mine").model()) is OfMain
    monkeypatch.delattr(main, "OfMain")  # as in another process
    opened = lr.open_run("runs/mine")
    assert opened.metrics["auc"].defined
    assert len(opened.predictions()) == 120
    with pytest.raises(ConfigError, match=r"__main__:OfMain: 1 fault\s+is a class of a notebook, script or function"):
        opened.model()
    monkeypatch.setattr(main, "OfMain", Batch, raising=False)
    with pytest.raises(ConfigError, match="is no concrete model"):
        lr.load_model("runs/mine")


# ---- results -----------------------------------------------------------------------------------------------------


def test_results_are_objects_and_frames(shared: lr.PreparedLog, run: lr.Run) -> None:
    evaluation, other = lr.evaluate(run), lr.fit("lr", shared, name="two", epochs=1, quiet=True)
    comparison = lr.compare([run, other])
    for result, rows in ((run, 6), (evaluation, 6), (comparison, 12)):
        frame, table = result.to_pandas(), result.to_arrow()
        assert len(frame) == len(table) == rows
        assert pl.DataFrame(result).shape == frame.shape
        assert "auc" in repr(result)
        assert result._repr_html_().count("<tr>") == 7
    auc = run.metrics["auc"]
    assert run.to_pandas().set_index("metric").loc["auc", "value"] == auc.value == float(auc)
    assert f"{auc:.3f}" == f"{auc.value:.3f}"
    second = comparison.to_pandas().set_index(["run", "metric"]).loc[("two", "auc")]
    assert second["difference"] == comparison.differences["two"]["auc"].interval.value
    assert second["verdict"] == comparison.differences["two"]["auc"].verdict
    assert comparison.to_pandas()["difference"].isna().sum() == 6  # of the baseline
    assert f"Run {run.folder}: din, best at step {run.results['best_step']}, measured on test" in repr(run)
    assert "one (din) on test: 120 rows of" in repr(evaluation)
    assert "two - one" in repr(comparison)


def test_the_history_of_a_run_is_a_table(run: lr.Run) -> None:
    frame = run.history.to_pandas()
    assert frame["split"].unique().tolist() == ["train", "valid"]
    assert frame["step"].is_monotonic_increasing
    train, valid = (frame[frame["split"] == name] for name in ("train", "valid"))
    assert train["loss"].notna().all()
    assert valid["auc"].notna().all()
    assert valid["loss"].isna().all()
    assert len(run.history) == len(frame) == len(train) + len(valid)


def test_what_a_table_shows_is_escaped() -> None:
    class Own(Tabular):
        def to_columns(self) -> dict[str, list[Any]]:
            return {"<a>": ["<script>", None], "n": [1_000, 0.5]}

    html = Own()._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert repr(Own()) == "Own\n<a>            n\n<script>   1,000\n          0.5000"


# ---- the package -------------------------------------------------------------------------------------------------


def test_every_name_of_the_package_is_what_it_says() -> None:
    assert set(lr.__all__) <= set(dir(lr))
    for name in lr.__all__:
        assert getattr(lr, name) is not None
    functions = "prepare fit train export compare evaluate predict open_run load_model save_model check compress encode"
    for name in functions.split():
        function = getattr(lr, name)
        assert inspect.isfunction(function), name
        assert inspect.getdoc(function), name
    with pytest.raises(AttributeError, match="module 'longrec' has no attribute 'fitt'"):
        lr.fitt  # type: ignore[attr-defined]  # noqa: B018


def test_no_package_has_the_name_of_a_function() -> None:
    folders = {path.name for path in Path(lr.__file__).parent.iterdir() if path.is_dir()}
    functions = {name for name in lr.__all__ if inspect.isfunction(getattr(lr, name))}
    assert not folders & functions
    assert list(inspect.signature(lr.train).parameters)[:2] == ["source", "overrides"]
    assert list(inspect.signature(lr.export).parameters)[:2] == ["run", "out"]


def test_the_signature_of_fit_has_every_setting_of_training() -> None:
    parameters = inspect.signature(lr.fit).parameters
    assert set(lr.FitConfig.model_fields) <= set(parameters)
    assert parameters["epochs"].default == 2
    assert "epochs: int = 2\n        epochs over the training rows" in (inspect.getdoc(lr.fit) or "")


# ---- models ------------------------------------------------------------------------------------------------------


def test_the_namespace_of_models_has_every_model() -> None:
    own = {name for name, module in lr.models._MODULES.items() if not module.startswith("core.")}
    assert {lr.models._MODULES[name] for name in own} == set(names())
    for name in own:
        assert getattr(lr.models, name) is find(lr.models._MODULES[name])
    assert set(dir(lr.models)) == set(lr.models.__all__)
    with pytest.raises(AttributeError, match="DINN"):
        lr.models.DINN  # noqa: B018


def test_help_of_a_model_shows_its_settings() -> None:
    signature = inspect.signature(lr.models.DIN)
    assert list(signature.parameters)[0] == "fields"
    assert signature.parameters["attention"].default == (80, 40)
    assert str(signature.parameters["attention"]) == "attention: tuple[int, ...] = (80, 40)"
    text = inspect.getdoc(lr.models.DIN) or ""
    assert "attention: tuple[int, ...] = (80, 40)\n        Hidden units of the activation unit." in text
    assert "scale: float = 1.0" in (inspect.getdoc(Liking) or "")


def test_help_of_a_config_class_shows_its_keys() -> None:
    for name in ("Schema", "Feature", "History", "Label", "TimeColumn", "Condition", "Source", "Split", "FitConfig"):
        cls = getattr(lr, name)
        text = inspect.getdoc(cls) or ""
        for key in inspect.signature(cls).parameters:
            assert f"\n    {key}: " in text, (name, key)
    assert str(inspect.signature(lr.Condition)).startswith("(*, at_least: float | None = None, equals: ")
    assert "    quantiles: int | None = None\n        number of buckets of equal" in (inspect.getdoc(lr.Feature) or "")
    assert "typing.Annotated" not in str(inspect.signature(lr.Schema))


def test_a_model_is_built_from_keywords(shared: lr.PreparedLog) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = (lr.models.DIN(shared.fields(), attention=[5], seed=1) for _ in range(2))
    assert one.config.attention == (5,)
    assert same_weights(one, other)
    assert not same_weights(one, lr.models.DIN(shared.fields(), attention=[5]))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError) as raised:
        lr.models.DIN(shared.fields(), attentoin=(5,), dropout=2)
    assert raised.value.where == "DIN"
    assert raised.value.faults == [
        "dropout: input should be less than 1, got 2", "attentoin: unknown key; did you mean 'attention'?",
    ]  # fmt: skip
    for arguments in ((), (3,), (shared.fields(), 3)):
        with pytest.raises(ConfigError, match="fields: must be the fields of a prepared log"):
            lr.models.DIN(*arguments)
    with pytest.raises(ConfigError, match="seed: must be a whole number"):
        lr.models.DIN(shared.fields(), seed=-1)


# ---- a loop of one's own -----------------------------------------------------------------------------------------


def test_a_loop_of_ten_lines_trains(shared: lr.PreparedLog) -> None:
    torch.manual_seed(0)
    model = lr.models.DIN(shared.fields(), **SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    batches, means = shared.batches("train", batch_size=128, seed=0), []
    for _ in range(4):
        losses = []
        for batch in batches:
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        means.append(np.mean(losses))
    assert means[-1] < means[0] - 0.02


def test_batches_are_those_of_training(shared: lr.PreparedLog) -> None:
    batches = shared.batches("train", batch_size=100, seed=5)
    first, second = [[batch.rows for batch in batches] for _ in range(2)]
    assert len(batches) == len(first) == 10
    assert sorted(torch.cat(first).tolist()) == shared.log.rows_of("train").tolist()
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    again = shared.batches("train", batch_size=100, seed=5, epoch=1)
    assert torch.cat([batch.rows for batch in again]).tolist() == torch.cat(second).tolist()
    assert [batch.rows.tolist() for batch in again.epoch(0)] == [rows.tolist() for rows in first]
    ordered = torch.cat([batch.rows for batch in shared.batches("test")])
    assert ordered.tolist() == shared.log.rows_of("test").tolist()
    assert shared.labels("test").tolist() == torch.cat([batch.label for batch in shared.batches("test")]).tolist()
    assert repr(batches) == "Batches(960 rows in 10 batches)"
    with pytest.raises(UnknownName):
        shared.batches("tset")
    with pytest.raises(ConfigError, match="batch_size"):
        shared.batches(batch_size=0)
