"""Tests of encoders in training: runs, resuming, scores in user order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.data.gather import gather
from longrec.data.loader import Loader
from longrec.data.user_loader import UserLoader
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.models.core.kinds import Encoder
from longrec.models.iat import IAT
from longrec.training import loop
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.loaders import build_loader
from longrec.training.scoring import score

Runs = Callable[..., list[str]]
Same = Callable[[Path, Path], None]

BASE = "base: {name: deepfm, embedding_dim: 4, mlp: [16]}, width: 8"
SOURCES = {
    "temporal": "{name: iat, order: temporal}",
    "user": f"{{name: iat, {BASE}, labels: true, rows_per_user: 20}}",
    "two passes, codes": f"{{name: iat, {BASE}, slots: 2, codes: {{size: 16}}, context: 5, rows_per_user: 10, "
    "passes: two}",
}


@pytest.fixture(scope="module")
def source(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run of a source in user order."""
    runs = tmp_path_factory.mktemp("sources")
    return train(shop, [f"model={SOURCES['user']}", f"fit.runs={runs}", "fit.lr=0.003"], quiet=True)


def test_a_source_of_temporal_order_trains_as_a_ranker_does(shop: Path, runs: Runs) -> None:
    run = train(shop, runs("model=" + SOURCES["temporal"], "data.split.valid=0", "fit.epochs=4"), quiet=True)
    assert isinstance(run.model(), Encoder)
    assert isinstance(build_loader(run.model(), run.log(), run.log().rows_of("train"), 100), Loader)
    assert run.metrics["auc"].value > 0.6


@pytest.mark.parametrize("kind", ["user", "two passes, codes"])
def test_a_source_in_user_order_resumes_bit_by_bit(
    kind: str, shop: Path, runs: Runs, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the second pass. Codebooks and the random numbers that restart codes are restored too."""
    overrides = runs(
        f"model={SOURCES[kind]}", "fit.epochs=2", "fit.val_checks_per_epoch=1", "fit.log_steps=1", "fit.max_steps=30"
    )
    whole = train(shop, [*overrides, "name=whole"], quiet=True)
    stop = whole.results["steps"] - 2
    assert stop > len(build_loader(whole.model(), whole.log(), whole.log().rows_of("train"), 100)), "in the second pass"

    def crash(self: loop.Loop) -> None:
        line(self)
        if self.state.step > stop:
            raise KeyError("planted")

    line = loop.Loop._write_train_line
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_checkpoint_due", lambda self: self.state.step == stop)
        patch.setattr(loop.Loop, "_write_train_line", crash)
        with pytest.raises(KeyError):
            train(shop, [*overrides, "name=halved"], quiet=True)
    half = whole.folder.parent / "halved"
    assert json.loads((half / "checkpoints" / "last" / "state.json").read_text())["step"] == stop
    same(whole.folder, train(resume=half, quiet=True).folder)


def test_training_in_user_order_counts_the_rows_that_count(
    shop: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real = IAT.loss

    def note(self: IAT, batch: Batch) -> torch.Tensor:
        seen.append((batch.loss_rows, batch.size))
        return real(self, batch)

    monkeypatch.setattr(IAT, "loss", note)
    model = f"{{name: iat, {BASE}, rows_per_user: 10, context: 6}}"
    run = train(shop, runs(f"model={model}", "fit.epochs=1"), quiet=True)
    assert sum(counted for counted, _ in seen) == len(run.log().rows_of("train"))
    assert sum(size for _, size in seen) > 1.2 * sum(counted for counted, _ in seen)
    assert len(seen) == run.results["steps"]


def test_scores_come_in_the_order_of_the_rows_and_do_not_depend_on_the_batch_size(source: Run) -> None:
    model, log = source.model(), source.log()
    rows = log.rows_of("test")
    expected = score(model, log, rows, 4_096)
    mixed = np.random.default_rng(0).permutation(np.concatenate([rows, rows[:9]]))
    scores = score(model, log, mixed, 64)
    np.testing.assert_allclose(scores, expected[np.searchsorted(rows, mixed)], atol=1e-6)
    np.testing.assert_allclose(score(model, log, rows, 1), expected, atol=1e-6)
    table = source.predictions("test")
    np.testing.assert_allclose(table["score"].to_numpy(), expected, atol=1e-6)


def test_a_score_reads_context_from_every_split(source: Run) -> None:
    """One row alone is scored with the earlier rows of its user from the train split."""
    model, log = source.model(), source.log()
    test = log.rows_of("test")
    row = test[np.flatnonzero(np.diff(log.user(test), prepend=-1))[3]]  # the first test row of its user
    first = max(int(log.events.offsets[log.user(np.array([row]))[0]]), row - 20)
    assert row - first > 10
    with torch.no_grad():  # looking back begins as the identity, and a short training leaves it near
        for parameter in model.sit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with torch.inference_mode():
        by_hand = torch.sigmoid(model(gather(log, np.arange(first, row + 1)))[-1])
        alone = torch.sigmoid(model(gather(log, np.array([row])))[0])
    assert score(model, log, np.array([row]), 64)[0] == pytest.approx(float(by_hand), abs=1e-6)
    assert float(alone) != pytest.approx(float(by_hand), abs=1e-5)


def test_8_stream_equals_batch_tokens_are_the_same_in_any_driver(source: Run) -> None:
    """Identical weights give identical tokens: rows at random, user by user, in one batch, one by one."""
    model, log = source.model(), source.log()
    assert isinstance(model, Encoder)
    rows = log.rows_of("valid")

    def tokens(batches: Iterator[Batch]) -> dict[int, torch.Tensor]:
        scores = {}
        with torch.inference_mode():
            for batch in batches:
                assert batch.rows is not None
                scores |= dict(zip(batch.rows.tolist(), model.encode(batch), strict=True))
        return scores

    expected = tokens(iter([gather(log, rows)]))
    drivers = [
        UserLoader(log, rows, 50, rows_per_user=7, context=3, seed=4).epoch(1),
        (gather(log, chunk) for chunk in np.array_split(np.random.default_rng(0).permutation(rows), 7)),
        (gather(log, rows[[at]]) for at in range(0, len(rows), 20)),
    ]
    for driver in drivers:
        for row, token in tokens(driver).items():
            if row in expected:
                torch.testing.assert_close(token, expected[row], rtol=1e-5, atol=1e-6)


def test_length_buckets_are_refused_in_user_order(shop: Path, runs: Runs) -> None:
    with pytest.raises(ConfigError, match=r"fit\.bucket_by_length: a model in user order builds its own batches"):
        train(shop, runs(f"model={SOURCES['user']}", "fit.bucket_by_length=true"), quiet=True)


def test_which_loader_a_model_gets(source: Run) -> None:
    model, log = source.model(), source.log()
    rows = log.rows_of("train")
    trains, scores = build_loader(model, log, rows, 100, seed=5), build_loader(model, log, rows, 100, shuffle=False)
    assert isinstance(trains, UserLoader)
    assert isinstance(scores, UserLoader)
    assert (_context(trains), _context(scores)) == (0, 20)


def _context(loader: UserLoader) -> int:
    """Longest context of a run."""
    longest = 0
    for batch in loader.epoch(0):
        if batch.loss_mask is not None and batch.users is not None:
            longest = max(longest, int(torch.bincount(batch.users[~batch.loss_mask]).max()))
    return longest
