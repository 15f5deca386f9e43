from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from longrec.config import Strict, parse
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.training import machine
from longrec.training.optimizers import build_optimizers, clip, set_learning_rates
from longrec.training.settings import FitConfig
from longrec.training.sparse_optimizers import LazyAdagrad, LazyAdam, LazySGD, RowwiseAdagrad


class Two(Model):
    """Model with a table and a linear layer."""

    Config = Strict

    def __init__(self) -> None:
        super().__init__(Strict(), Fields((), {}))
        self.table = nn.Parameter(torch.arange(12.0).reshape(4, 3) / 10)
        self.linear = nn.Linear(3, 1)

    def embedding_parameters(self) -> list[nn.Parameter]:
        return [self.table]

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.weigh(torch.tensor([1, 3, 1, 1]), sparse=True)

    def weigh(self, ids: torch.Tensor, *, sparse: bool) -> torch.Tensor:
        return self.linear(nn.functional.embedding(ids, self.table, sparse=sparse)).square().sum()


def test_tables_and_dense_parameters_get_their_own_optimizer() -> None:
    model = Two()
    config = FitConfig(lr=0.1, embedding_lr=0.2, weight_decay=0.3, l2=0.4)
    optimizers = build_optimizers(model, config)
    tables, dense = optimizers["tables"], optimizers["dense"]
    assert isinstance(tables, LazyAdam)
    assert tables.param_groups[0] | {"params": None, "betas": None, "eps": None} == {
        "params": None, "betas": None, "eps": None, "lr": 0.2, "l2": 0.4, "rowwise": False,
    }  # fmt: skip
    assert [(g["weight_decay"], g["lr"], g["fused"], len(g["params"])) for g in dense.param_groups] == [
        (0.3, 0.1, True, 1),
        (0.0, 0.1, True, 1),
    ], "biases are not decayed"
    assert build_optimizers(model, FitConfig(embedding_optimizer="rowwise_adam"))["tables"].param_groups[0]["rowwise"]
    adagrad = build_optimizers(model, FitConfig(embedding_optimizer="rowwise_adagrad"))["tables"]
    assert isinstance(adagrad, RowwiseAdagrad)
    assert adagrad.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("settings", "dense", "tables"),
    [
        ({}, torch.optim.AdamW, LazyAdam),
        ({"optimizer": "adam", "betas": (0.8, 0.9), "embedding_optimizer": "rowwise_adam"}, torch.optim.Adam, LazyAdam),
        (
            {"optimizer": "adagrad", "embedding_optimizer": "adagrad", "initial_accumulator_value": 0.1},
            torch.optim.Adagrad,
            LazyAdagrad,
        ),
        ({"optimizer": "adagrad", "embedding_optimizer": "rowwise_adagrad"}, torch.optim.Adagrad, RowwiseAdagrad),
        ({"optimizer": "sgd", "embedding_optimizer": "sgd", "momentum": 0.9}, torch.optim.SGD, LazySGD),
    ],
)
def test_every_optimizer_gets_its_settings(settings: dict[str, object], dense: type, tables: type) -> None:
    config = FitConfig(weight_decay=0.3, **settings)
    optimizers_by_name = build_optimizers(Two(), config)
    assert type(optimizers_by_name["dense"]) is dense
    assert type(optimizers_by_name["tables"]) is tables
    for optimizer in optimizers_by_name.values():
        for group in optimizer.param_groups:
            assert group["lr"] == 1e-3
            assert group.get("betas", config.betas) == config.betas
            assert group.get("momentum", config.momentum) == config.momentum
            assert (
                group.get("initial_accumulator_value", config.initial_accumulator_value)
                == config.initial_accumulator_value
            )
    assert [group["weight_decay"] for group in optimizers_by_name["dense"].param_groups] == [0.3, 0.0]


def test_weight_decay_is_decoupled_with_adamw_and_in_the_gradient_with_sgd() -> None:
    model = Two()
    with torch.no_grad():
        model.linear.weight.fill_(2.0)
    model.linear.weight.grad = torch.ones(1, 3)
    build_optimizers(model, FitConfig(optimizer="sgd", lr=0.5, weight_decay=0.25))["dense"].step()
    assert model.linear.weight.tolist() == [[2 - 0.5 * (1 + 0.25 * 2)] * 3]
    with torch.no_grad():
        model.linear.weight.fill_(2.0)
    build_optimizers(model, FitConfig(optimizer="adamw", lr=0.5, weight_decay=0.25))["dense"].step()
    # Adam's first step is lr long, whatever the gradient; the decay is beside it.
    assert model.linear.weight.flatten().tolist() == pytest.approx([2 - 0.5 * 0.25 * 2 - 0.5] * 3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 0.9}, "fit: momentum applies only to sgd, but optimizer is adamw, embedding_optimizer lazy_adam"),
        ({"initial_accumulator_value": 0.1}, "initial_accumulator_value applies only to adagrad, rowwise_adagrad, but"),
        ({"optimizer": "sgd", "embedding_optimizer": "sgd", "betas": [0.5, 0.9]}, "betas applies only to adamw"),
        ({"warmup_from": 1e-4}, "warmup_from is given without warmup_steps"),
        ({"warmup_from": 1.0, "warmup_steps": 5}, "warmup_from is 1, but must not exceed lr 0.001"),
        ({"optimizer": "adan"}, "fit.optimizer: must be one of"),
        ({"schedule": {"name": "cosine"}}, "fit.schedule: steps is required with name: cosine"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(FitConfig, settings, "job.yaml", "fit")
    assert says in str(caught.value)


def test_rates_rise_over_the_warm_up_and_stay() -> None:
    config = FitConfig(lr=0.1, embedding_lr=0.4, warmup_steps=4)
    optimizers = build_optimizers(Two(), config)
    optimizers_by_name = []
    for step in range(7):
        set_learning_rates(optimizers, config, step)
        optimizers_by_name.append([optimizers[name].param_groups[0]["lr"] for name in ("dense", "tables")])
    assert [dense for dense, _ in optimizers_by_name] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])
    assert [tables for _, tables in optimizers_by_name] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("longest", [0.5, 100.0])
def test_clipping_sums_equal_rows_first(longest: float) -> None:
    torch.manual_seed(0)
    sparse, dense, ids = Two(), Two(), torch.tensor([1, 3, 1, 1])
    dense.load_state_dict(sparse.state_dict())
    sparse.weigh(ids, sparse=True).backward()
    dense.weigh(ids, sparse=False).backward()
    clip(sparse, longest)
    torch.nn.utils.clip_grad_norm_(dense.parameters(), longest)
    assert sparse.table.grad is not None
    for one, other in zip(sparse.parameters(), dense.parameters()):
        assert one.grad is not None
        assert torch.allclose(one.grad.to_dense(), other.grad, rtol=1e-5)
    before = sparse.table.detach().clone()
    build_optimizers(sparse, FitConfig())["tables"].step()
    assert (sparse.table != before).any(1).tolist() == [False, True, False, True]


def test_the_allocator_is_left_alone_where_there_is_no_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.keep_large_blocks() in (True, False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert machine.keep_large_blocks.__wrapped__() is False


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), machine.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_there_is_no_revision_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.read_revision(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert machine.read_revision(tmp_path) is None
