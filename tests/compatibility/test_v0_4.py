"""What version 0.4 wrote opens and scores as it did: run folders, bundles, token stores, knowledge.

``v0_4.tar.xz`` holds a small shop that 0.4.0 prepared, trained, compressed and exported, with every key and kind that
was renamed afterwards.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import longrec
from longrec.data.log import Log
from longrec.errors import ConfigError
from longrec.exporting.bundle import Bundle
from longrec.features.schema import Schema
from longrec.serve.online_source import replay as replay_source
from longrec.serve.service import replay
from longrec.store.knowledge_store import KnowledgeStore
from longrec.store.token_store import TokenStore
from longrec.training.finished_run import open_run

ARCHIVE = Path(__file__).parent / "v0_4.tar.xz"
WRITTEN_IN = "/" + "tmp/shop"
"""Folder that 0.4.0 worked in. Its paths are in the files."""
SAME = 1e-6
"""Relative difference of float32 numbers that were computed on another processor."""
RUNS = ("din", "iat", "reader", "keep", "plug")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v0_4")
    with tarfile.open(ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    shop = folder / "shop"
    for path in [*shop.glob("runs/*/config.yaml"), *shop.rglob("*.json")]:
        if ".bundle" in str(path):
            continue  # a bundle is checked against its digests, and depends on no path
        text = path.read_text(encoding="utf-8")
        if WRITTEN_IN in text:
            path.write_text(text.replace(WRITTEN_IN, str(shop)), encoding="utf-8")
    return shop


@pytest.fixture
def shop(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.mark.parametrize("name", ["din", "iat", "reader", "keep", "plug"])
def test_a_run_opens(name: str, shop: Path) -> None:
    run = open_run(shop / "runs" / name)
    assert run.metrics["auc"].value is not None
    assert 0.9 < run.metrics["normalized_entropy"].value < 1.2
    assert run.config.fit.embedding_optimizer == "rowwise_adagrad"
    assert run.config.fit.embedding_lr == 0.05
    assert run.config.fit.initial_accumulator_value == 0.1
    assert run.config.evaluate.resample == "row"
    schema = run.config.schema
    assert schema == run.fitted.schema.model_copy(update={"time": schema.time})
    assert (schema.label_delay, schema.features["stars"].available_at) == ("1h", "stars_at")
    assert schema.features["liked"].available_after == "2h"
    assert [schema.features[n].kind for n in ("tags", "cost", "price", "hour", "both")] == [
        "multi_id", "bucketized", "numeric", "calendar", "cross",
    ]  # fmt: skip
    assert [schema.side(n) for n in ("tags", "price", "device")] == ["item", "candidate", "context"]
    seen = schema.histories["seen"]
    assert (seen.max_length, seen.features[-3:]) == (8, ("time_gap", "time_since_previous", "session_recency"))


@pytest.mark.parametrize("name", ["din", "reader", "plug"])
def test_a_run_scores_as_it_did(name: str, shop: Path, tmp_path: Path) -> None:
    run = open_run(shop / "runs" / name)
    before = run.predictions("test")["score"].to_numpy()
    after = pq.read_table(longrec.predict(run, "test", tmp_path / "scores.parquet"))["score"].to_numpy()
    np.testing.assert_allclose(after, before, rtol=SAME, atol=0)


@pytest.mark.parametrize("name", ["din", "reader"])
def test_a_bundle_passes_its_golden_requests(name: str, shop: Path) -> None:
    bundle = Bundle.open(shop / f"{name}.bundle")
    assert bundle.manifest.version == "0.4.0"
    assert any(entry.name == "h.seen.time_since_previous" for entry in bundle.manifest.inputs)
    replay(bundle.path, bundle.golden)


def test_the_bundle_of_an_encoder_passes_its_golden_requests(shop: Path) -> None:
    bundle = Bundle.open(shop / "encoder.bundle")
    replay_source(bundle.path, bundle.golden)


def test_stores_open(shop: Path) -> None:
    with TokenStore.open(str(shop / "tokens/v1")) as tokens:
        assert tokens.info.width == 8
    assert KnowledgeStore.open(str(shop / "knowledge/v1")) is not None
    schema = open_run(shop / "runs/reader").config.schema
    assert schema.histories["lived"].features == ("token", "version", "label", "time_gap")


def test_a_source_is_exported_again(shop: Path, tmp_path: Path) -> None:
    manifest = longrec.export(shop / "tokens/v1", tmp_path / "again.bundle")
    assert manifest.kind == "encoder"


def test_an_interrupted_run_is_resumed(shop: Path) -> None:
    """The half run stopped after step 5 and had the settings of the whole one."""
    run = longrec.train(resume=shop / "runs/half", quiet=True)
    whole = open_run(shop / "runs/din")
    assert run.metrics["auc"].value == pytest.approx(whole.metrics["auc"].value, rel=SAME)
    assert run.metrics["log_loss"].value == pytest.approx(whole.metrics["log_loss"].value, rel=SAME)


def test_a_warm_start_takes_an_old_run(shop: Path, tmp_path: Path) -> None:
    config = open_run(shop / "runs/din").config.to_yaml().replace("init_from: null", f"init_from: {shop / 'runs/din'}")
    (tmp_path / "again.yaml").write_text(config.replace("name: din\n", "name: again\n", 1))
    overrides = [f"fit.runs={tmp_path}", "fit.max_steps=1", "fit.allow_future_weights=true"]
    assert longrec.train(tmp_path / "again.yaml", overrides, quiet=True).metrics["auc"].value is not None


def test_the_config_of_a_run_is_no_config_of_a_user(shop: Path, tmp_path: Path) -> None:
    """Former names are read in the run folder, where LongRec wrote them, and refused elsewhere."""
    shutil.copy(shop / "runs/din/config.yaml", tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="fit.optimiser: is called optimizer now; write optimizer: adam"):
        longrec.check(tmp_path / "mine.yaml")
    assert longrec.check(shop / "runs/din/config.yaml")["model"] == "din"


def test_a_prepared_log_opens(shop: Path) -> None:
    about = json.loads((shop / "runs/din/log.json").read_text())
    log = Log.open(about["path"])
    assert isinstance(log.schema, Schema)
    assert len(log) == 1200
