"""Tests of knowledge: written by weights that have not seen later labels. Numbers are those of the notes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import domains
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from longrec.data.entity_batches import build_item_batch, build_user_batch
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.splits import TRAIN
from longrec.errors import ConfigError, RunError, StoreError
from longrec.features.batch import Batch
from longrec.features.vocabulary import compute_key_numbers
from longrec.models.core import artifact
from longrec.models.keep import KEEP
from longrec.store.knowledge_store import KnowledgeStore
from longrec.training.extract import ExtractReport, extract
from longrec.training.fit import train
from longrec.training.job import read_job

Domain = tuple[Path, ExtractReport]
FEW = ["blocks=4"]


def opened(config: dict[str, Any]) -> Log:
    job = read_job(config)
    return Log.open(prepare(job.data, job.schema), job.schema)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller version of the two domains, for tests that do not depend on quality."""
    return domains.write(tmp_path_factory.mktemp("small"), users=30, events=40)


class Watched:
    """Record of an extractor: training rows before each version, with the availability of their labels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.targets: list[tuple[NDArray[np.int64], NDArray[np.bool_]]] = []
        self.versions: list[int] = []
        real, publish = KEEP.loss, KnowledgeStore.publish

        def loss(model: KEEP, batch: Batch) -> torch.Tensor:
            assert batch.rows is not None
            self.rows.append(batch.rows.numpy())
            self.targets.append((batch.rows.numpy(), ~batch.task_labels["like"].isnan().numpy()))
            return real(model, batch)

        def note(store: KnowledgeStore, *arguments: Any) -> Any:
            self.versions.append(len(self.rows))
            return publish(store, *arguments)

        monkeypatch.setattr(KEEP, "loss", loss)
        monkeypatch.setattr(KnowledgeStore, "publish", note)

    def learned(self, version: int) -> NDArray[np.int64]:
        """Return the training rows of a version."""
        return np.concatenate(self.rows[: self.versions[version]])

    def liked(self, version: int) -> NDArray[np.int64]:
        """Return the rows whose second label a version trained on."""
        return np.concatenate([rows[is_available] for rows, is_available in self.targets[: self.versions[version]]])


def test_versions_are_written_side_by_side(domain: Domain) -> None:
    folder, written = domain
    with KnowledgeStore.open(written.into) as store:
        info = store.info
        assert info.widths == {"user": 8, "item": 8}
        assert (info.unit, info.keys, info.codec) == ("ms", {"user": "int64", "item": "int64"}, "fp16")
        assert [one.number for one in info.versions] == list(range(domains.DAYS - 1))
        days = [(one.published - domains.START * 1_000) / 86_400_000 for one in info.versions]
        assert days == pytest.approx(range(1, domains.DAYS), abs=0.01)
        vectors = store.look_up("user", np.arange(10, 160), np.array([5]))
    assert vectors[:, 0].all()
    # frozen statistics of the version: mean 0 and deviation 1, whatever the scale of the extractor
    live = vectors[:, 1:].std(0) > 0
    assert live.any()
    np.testing.assert_allclose(vectors[:, 1:].mean(0), 0, atol=2e-3)
    np.testing.assert_allclose(vectors[:, 1:].std(0)[live], 1, atol=2e-3)
    assert written.tokens == sum(one["rows"] for one in written.versions) == 11 * 200
    assert written.versions[5]["auc"] > 0.75
    assert written.leak == ""


def test_what_is_stored_is_what_the_extractor_knows_at_the_start_of_the_block(small: Path, tmp_path: Path) -> None:
    """The last version is reproduced by the weights in the folder."""
    written = extract(domains.extractor(small), tmp_path / "v1", ["every=3d", "codec=fp32"], quiet=True)
    log = opened(domains.extractor(small))
    model = artifact.load(tmp_path / "v1" / "source" / "model").eval()
    assert isinstance(model, KEEP)
    with KnowledgeStore.open(tmp_path / "v1") as store:
        last = store.info.versions[-1]
        mean, std = (np.array(getattr(store._stores["user"].info.versions[-1], name)) for name in ("mean", "std"))
        keys = compute_key_numbers(log.users.keys.values)
        vectors = store.look_up("user", keys, np.array([last.number]))
        items = store.look_up("item", compute_key_numbers(log.items.keys.values), np.array([last.number]))
    with torch.inference_mode():
        k_u = model.user_knowledge(build_user_batch(log, np.arange(1, len(log.users)), last.published)).numpy()
        k_v = model.item_knowledge(build_item_batch(log, np.arange(1, len(log.items)), last.published)).numpy()
    np.testing.assert_allclose(vectors[:, 1:] * std + mean, k_u, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(items[:, 1:] * k_v.std(0).clip(1e-6) + k_v.mean(0), k_v, rtol=1e-3, atol=1e-3)
    about = json.loads((tmp_path / "v1" / "source" / "source.json").read_text())
    assert len(about["versions"]) == len(written.versions)


def test_4_time_leakage(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of a version, also second labels, were available before the first downstream row that reads it."""
    watched = Watched(monkeypatch)
    extract(domains.extractor(small), tmp_path / "v1", ["every=2d", "learn=all"], quiet=True)
    wide = opened(domains.extractor(small))
    log = opened(domains.downstream(small, tmp_path / "v1"))
    store = log.knowledge["who"].store
    read = store.find_versions(log.timestamps)
    assert set(read) == {0, 1, 2, 3, 4}
    for version in range(len(store.info.versions)):
        first = log.timestamps[read == version].min()
        published = store.info.versions[version]
        learned, liked = watched.learned(version), watched.liked(version)
        assert wide.label_time(learned).max() < published.trained_before <= published.published < first
        late = wide.events.times.take(liked) + 86_400_000
        assert len(liked) == 0 or late.max() < published.trained_before
        # and nothing was held back: all that was known by then was learned, once
        is_available = wide.label_time(np.arange(len(wide))) < published.trained_before
        assert np.array_equal(np.sort(learned), np.flatnonzero(is_available))
    assert len(watched.liked(4)) > 100


def test_4_time_leakage_histories_end_with_the_version(domain: Domain) -> None:
    """Later events of a user change no earlier version: with a shorter log the version is the same."""
    folder, written = domain
    log = opened(domains.extractor(folder))
    timestamp = log.events.times.min() + 5 * 86_400_000
    model = artifact.load(Path(written.into) / "source" / "model").eval()
    assert isinstance(model, KEEP)
    users = np.arange(1, len(log.users))
    with torch.inference_mode():
        before = model.user_knowledge(build_user_batch(log, users, int(timestamp)))
        columns = dict(log.events.columns)
        late = log.events.times >= timestamp
        columns["click"] = np.where(late, 5 - columns["click"], columns["click"])
        columns["item"] = np.where(late, 1, columns["item"])
        log.events = type(log.events)(log.events.offsets, log.events.times, columns)
        assert torch.equal(model.user_knowledge(build_user_batch(log, users, int(timestamp))), before)
        assert not torch.equal(model.user_knowledge(build_user_batch(log, users, int(timestamp) + 86_400_000)), before)


def test_5_domain_overlap_the_evaluation_window_is_learned_by_nobody(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    extract(domains.extractor(small), tmp_path / "v1", FEW, quiet=True)
    wide = opened(domains.extractor(small))
    learned = np.concatenate(watched.rows)
    assert (wide.splits.take(learned) == TRAIN).all()
    assert watched.versions[-1] == len(watched.rows)
    extract(domains.extractor(small), tmp_path / "v2", ["blocks=12", "learn=all"], quiet=True)
    assert (wide.splits.take(np.concatenate(watched.rows)) != TRAIN).any()


def test_a_visibility_delay_delays_the_publication(small: Path, tmp_path: Path) -> None:
    extract(domains.extractor(small), tmp_path / "v1", [*FEW, "visibility_delay=6h"], quiet=True)
    with KnowledgeStore.open(tmp_path / "v1") as store:
        lags = [one.published - one.trained_before for one in store.info.versions]
    assert min(lags) == 6 * 3_600_000


def test_users_nobody_has_met_yet_are_missing(small: Path, tmp_path: Path) -> None:
    """A version holds the users with earlier events, and all items."""
    table = pq.read_table(small / "wide.parquet")
    late = (table["user"].to_numpy() % 3 == 0) & (table["at"].to_numpy() < domains.START + 7 * domains.DAY)
    pq.write_table(table.filter(pa.array(~late)), tmp_path / "wide.parquet")
    shutil.copy(small / "items.parquet", tmp_path)
    extract(domains.extractor(tmp_path), tmp_path / "v1", ["every=2d"], quiet=True)
    wide = opened(domains.extractor(tmp_path))
    keys, begins = compute_key_numbers(wide.users.keys.values), wide.events.times[wide.events.offsets[1:-1]]
    counts = []
    with KnowledgeStore.open(tmp_path / "v1") as store:
        for one in store.info.versions:
            is_available = store.look_up("user", keys, np.array([one.number]))[:, 0] > 0
            assert np.array_equal(is_available, begins < one.published)
            counts.append(one.users)
            assert (one.users, one.items) == (is_available.sum(), 50)
    assert counts == [20, 20, 20, 30, 30]


def test_the_same_run_extracts_the_same(small: Path, tmp_path: Path) -> None:
    run = train(domains.extractor(small), ["name=extractor", f"fit.runs={tmp_path}", "fit.max_steps=2"], quiet=True)
    vectors = []
    for number in (1, 2):
        extract(run, tmp_path / f"v{number}", FEW, quiet=True)
        with KnowledgeStore.open(tmp_path / f"v{number}") as store:
            vectors.append(store.look_up("user", np.arange(10, 160), np.array([2])))
    assert np.array_equal(vectors[0], vectors[1])


def test_what_cannot_be_extracted_is_refused(domain: Domain, tmp_path: Path) -> None:
    folder, written = domain
    config = domains.extractor(folder)
    with pytest.raises(StoreError, match="the folder is not empty"):
        extract(config, written.into, FEW, quiet=True)
    with pytest.raises(ConfigError, match="evry: unknown key; did you mean 'every'"):
        extract(config, tmp_path / "v1", ["evry=1d"], quiet=True)
    with pytest.raises(ConfigError, match=r"the target 'lik' is no feature; did you mean 'like'"):
        extract(domains.extractor(folder, tasks={"lik": 1.0}), tmp_path / "v1", FEW, quiet=True)
    other = domains.job(folder, "wide", config["data"]["schema"], {"name": "iat", "base": {"name": "deepfm"}})
    with pytest.raises(RunError, match="a iat, which has no vectors of users and items"):
        extract(other, tmp_path / "v1", FEW, quiet=True)
    assert not (tmp_path / "v1").exists()


def test_training_refuses_targets_that_are_none(domain: Domain, tmp_path: Path) -> None:
    folder, _ = domain
    with pytest.raises(ConfigError, match="the target 'item' is no feedback"):
        train(domains.extractor(folder, tasks={"item": 1.0}), [f"fit.runs={tmp_path / 'runs'}"], quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_sample_reads_the_vectors_of_its_user_and_item(domain: Domain) -> None:
    folder, written = domain
    log = opened(domains.downstream(folder, Path(written.into)))
    rows = np.arange(0, len(log), 37)
    batch = gather(log, rows)
    with KnowledgeStore.open(written.into) as store:
        for at, row in enumerate(rows):
            version = store.find_versions(log.timestamps[[row]])
            user = np.array([log.users.key(int(log.user(np.array([row]))[0]))])
            item = np.array([log.items.key(int(log.events.columns["item"][row]))])
            assert np.array_equal(batch.features["who"][[at]].numpy(), store.look_up("user", user, version))
            assert np.array_equal(batch.features["what"][[at]].numpy(), store.look_up("item", item, version))
