from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import domains
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.errors import RunError
from longrec.features.batch import Batch
from longrec.models.core import registry as models
from longrec.models.din import DIN
from longrec.models.keep_plug import KEEPPlug
from longrec.training.extract import ExtractReport
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.job import read_job
from longrec.training.optimizers import build_optimizers
from longrec.training.scoring import score
from longrec.training.warm_start import warm_start

Domain = tuple[Path, ExtractReport]
Runs = Callable[..., list[str]]
Same = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def first(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run to start from."""
    return train(shop, ["name=first", f"fit.runs={tmp_path_factory.mktemp('first')}", "fit.epochs=6"], quiet=True)


@pytest.fixture(scope="module")
def base(domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run of the narrow domain without knowledge."""
    folder, _ = domain
    overrides = ["name=base", f"fit.runs={tmp_path_factory.mktemp('base')}"]
    return train(domains.downstream(folder, None), overrides, quiet=True)


def built(config: Any) -> tuple[models.Model, dict[str, torch.optim.Optimizer], Any, Log]:
    job = read_job(config)
    log = Log.open(prepare(job.data, job.schema), job.schema)
    torch.manual_seed(5)
    model = models.build(job.model, log.fields())
    return model, build_optimizers(model, job.fit), job.fit, log


def test_weights_and_optimizer_state_continue_where_the_run_ended(first: Run, shop: Path) -> None:
    model, optimizers, fit, log = built(shop)
    state = torch.get_rng_state()
    warm_start(first.folder, model, optimizers, fit, log.fitted)
    assert torch.equal(torch.get_rng_state(), state)
    last = first.folder / "checkpoints" / "last"
    for name, tensor in load_file(last / "weights.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor), name
    saved_state = {
        name: tensor for name, tensor in load_file(last / "optimizer.safetensors").items() if name != "random"
    }
    current_state = {
        f"{kind}.{index}.{key}": value
        for kind, optimizer in optimizers.items()
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }
    assert current_state.keys() == saved_state.keys()
    assert all(torch.equal(current_state[key], saved_state[key]) for key in saved_state)


def test_a_started_run_goes_on_and_is_better_at_once(first: Run, shop: Path, runs: Runs) -> None:
    overrides = runs("fit.epochs=1", "fit.val_checks_per_epoch=8", "fit.monitor=log_loss")
    cold = train(shop, [*overrides, "name=cold"], quiet=True)
    warm = train(shop, [*overrides, "name=warm", f"fit.init_from={first.folder}"], quiet=True)
    assert warm.config.fit.init_from == str(first.folder)

    def at_first(run: Run) -> float:
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        return next(line["auc"] for line in lines if line["split"] == "valid")

    assert at_first(warm) > at_first(cold) + 0.03


@pytest.mark.parametrize("step", [1, 13])
def test_a_started_run_resumes_bit_by_bit(
    first: Run, shop: Path, runs: Runs, same: Same, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    overrides = runs("fit.epochs=1", f"fit.init_from={first.folder}")
    whole = train(shop, [*overrides, "name=whole"], quiet=True)
    steps, real = 0, DIN.loss

    def count(self: DIN, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DIN, "loss", count)
        with pytest.raises(RunError, match="stopped after step"):
            train(shop, [*overrides, "name=halved"], quiet=True)
    same(whole.folder, train(resume=whole.folder.parent / "halved", quiet=True).folder)


def test_a_run_killed_before_its_first_checkpoint_starts_from_there_again(
    first: Run, shop: Path, runs: Runs, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = runs("fit.epochs=1", f"fit.init_from={first.folder}")
    whole = train(shop, [*overrides, "name=whole"], quiet=True)

    def killed(self: DIN, batch: Batch) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DIN, "loss", killed)
        with pytest.raises(KeyboardInterrupt):
            train(shop, [*overrides, "name=halved"], quiet=True)
    same(whole.folder, train(resume=whole.folder.parent / "halved", quiet=True).folder)


def test_1_zero_init_plug_from_a_run_scores_as_that_run(domain: Domain, base: Run) -> None:
    folder, written = domain
    model, optimizers, fit, log = built(domains.downstream(folder, Path(written.into)))
    warm_start(base.folder, model, optimizers, fit, log.fitted)
    bare, _, _, plain = built(domains.downstream(folder, None))
    bare.load_state_dict(load_file(base.folder / "checkpoints" / "last" / "weights.safetensors"))
    rows = log.rows_of("test")
    assert np.array_equal(score(model, log, rows, 512), score(bare, plain, rows, 512))


def test_2_checkpoint_of_the_base_starts_the_plugged_run(domain: Domain, base: Run, tmp_path: Path) -> None:
    folder, written = domain
    overrides = ["name=plugged", f"fit.runs={tmp_path}", f"fit.init_from={base.folder}"]
    run = train(domains.downstream(folder, Path(written.into)), overrides, quiet=True)
    assert isinstance(run.model(), KEEPPlug)
    assert run.metrics["auc"].value > base.metrics["auc"].value
    again = train(
        domains.downstream(folder, Path(written.into)),
        [f"fit.runs={tmp_path}", f"fit.init_from={run.folder}", "fit.max_steps=1"],
        quiet=True,
    )
    assert isinstance(again.model(), KEEPPlug)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model={name: deepfm}"], r"a din whose weights do not fit this deepfm: .*expected the same model"),
        (["model.mlp=[20]"], r"top.layers.0.linear.weight is 16x\d+, not 20x"),
        (["model.mlp=[16, 8]"], r"top.layers.1\S* is missing"),
        (["fit.embedding_optimizer=rowwise_adagrad"], "Set fit.embedding_optimizer: lazy_adam"),
        (["fit.optimizer=sgd"], "state of adamw; expected that of sgd"),
        (["data.schema.features.item_id.min_count=30"], "feature 'item_id' has another encoding"),
        (["data.schema.features.stars.edges=[1, 2, 3, 4]"], "feature 'stars' has another encoding"),
        (["fit.init_from=nowhere"], "no such folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(
    first: Run, shop: Path, tmp_path: Path, overrides: list[str], says: str
) -> None:
    runs = [f"fit.runs={tmp_path / 'runs'}", f"fit.init_from={first.folder}"]
    with pytest.raises(RunError, match=says):
        train(shop, [*runs, *overrides], quiet=True)
    assert not (tmp_path / "runs").exists()


def test_other_vocabularies_are_refused_whatever_their_size(domain: Domain, base: Run, tmp_path: Path) -> None:
    """The same number of users under other names: every id has another meaning."""
    folder, _ = domain
    config = domains.downstream(folder, None)
    kinds = config["data"]["schema"]["features"]
    kinds["user"] = {"kind": "id", "vocab": list(range(5_000, 5_150))}
    with pytest.raises(RunError, match=r"feature 'user' has another encoding: its ids have another meaning"):
        train(config, [f"fit.runs={tmp_path / 'runs'}", f"fit.init_from={base.folder}"], quiet=True)


def test_a_hash_means_the_same_whatever_was_counted(first: Run, shop: Path, runs: Runs) -> None:
    """The number of distinct values of a hash changes no id."""
    hashed = [f"data.schema.features.{name}={{kind: id, hash: 500}}" for name in ("user_id", "item_id")]
    quick = [*runs("fit.max_steps=1"), *hashed]
    earlier = train(shop, [*quick, "name=earlier", "data.split.test=0.88"], quiet=True)
    again = train(shop, [*quick, "name=again", f"fit.init_from={earlier.folder}", "fit.lr=1e-6"], quiet=True)
    before, after = earlier.fitted.encoders["item_id"], again.fitted.encoders["item_id"]
    assert before != after
