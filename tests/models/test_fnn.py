from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_runs import aucs_of, run_in
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import RunError
from longrec.models.core.registry import build
from longrec.models.fm import FM
from longrec.models.fnn import FNN
from longrec.nn.embedding import Embeddings
from longrec.nn.mlp import MLP
from longrec.testing.batches import FIELDS, ragged
from longrec.testing.case import Case
from longrec.training.warm_start import inherit


def fnn(settings: dict[str, object]) -> FNN:
    model = Case("fnn", settings).build()
    assert isinstance(model, FNN)
    return model


def from_fm(model: FNN) -> FM:
    """A lively factorisation machine that the model was started from."""
    fm = Case("fm").lively()
    assert isinstance(fm, FM)
    inherit(model, fm, "fit.init_from")
    return fm


def test_a_the_first_layer_reads_the_parameters_of_the_fm_exactly() -> None:
    model, batch = fnn({}), ragged(9)
    fm = from_fm(model)
    z = torch.cat(model.read(batch, model.embed(batch)), 1)
    w, v = fm.first_order(batch).features, fm.embeddings(batch).features
    assert torch.equal(z[:, 0], fm.bias.expand(9))
    at = 1
    for field in FIELDS.features:
        assert torch.equal(z[:, at], w[field.name][:, 0])
        assert torch.equal(z[:, at + 1 : at + 17], v[field.name])
        at += 17
    assert at == z.shape[1]
    row = int(batch.features["user"][3])  # type: ignore[index]
    assert torch.equal(z[3, 1:18], torch.cat([fm.first_order.table("user")[row], fm.embeddings.table("user")[row]]))


def test_b_embeddings_are_trained_in_the_second_stage() -> None:
    model, batch = fnn({}), ragged(9)
    from_fm(model)
    model.loss(batch).backward()
    assert {id(table) for table in model.fm.embedding_parameters()} == {
        id(table) for table in model.embedding_parameters()
    }
    for table in model.embedding_parameters():
        assert table.grad is not None
        assert table.grad.to_dense().abs().sum() > 0
    assert model.fm.bias.grad is not None
    assert model.fm.bias.grad.abs() > 0


@pytest.mark.parametrize("settings", [{}, {"activation": "relu", "mlp": [20]}], ids=str)
def test_c_without_pre_training_it_is_an_mlp_over_embeddings_of_the_same_seed(settings: dict[str, object]) -> None:
    model, batch = fnn(settings), ragged(9)
    torch.manual_seed(0)
    vectors, weights = Embeddings(FIELDS, 16), Embeddings(FIELDS, width=1, std=0.0)
    config = model.config
    deep = MLP(1 + 17 * len(FIELDS.features), config.mlp, config.activation, outputs=1)
    v, w = vectors(batch).features, weights(batch).features
    x = torch.cat([torch.zeros(9, 1), *(vector for name in v for vector in (w[name], v[name]))], 1)
    assert torch.equal(model(batch), deep(x).squeeze(1))


def test_equations_2_and_3() -> None:
    model, batch = Case("fnn").lively(), ragged(9)
    assert isinstance(model, FNN)
    h = torch.cat(model.read(batch, model.embed(batch)), 1)
    for layer in model.top.layers:
        h = torch.tanh(F.linear(h, layer.linear.weight, layer.linear.bias))
    assert model.top.last is not None
    expected = F.linear(h, model.top.last.weight, model.top.last.bias).squeeze(1)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)


def test_an_fm_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match=r"a fm whose weights do not fit this fnn: embeddings.table_user is 40x8, not"):
        inherit(fnn({}), build({"name": "fm", "embedding_dim": 8}, FIELDS), "fit.init_from")
    with pytest.raises(RunError, match="a deepfm whose weights do not fit this fnn"):
        inherit(fnn({}), Case("deepfm").build(), "fit.init_from")
    inherit(fnn({}), fnn({}), "fit.init_from")


def test_pairs_without_a_pattern_are_learned_from_a_run_of_fm_and_not_without(tmp_path: Path) -> None:
    dataset = generate_dataset("co_action", users=400, side="field", kinds=6)
    narrow = {"embedding_dim": 8}
    first = run_in(dataset, {"name": "fm", **narrow}, tmp_path, "fm", epochs=5)
    warm = run_in(dataset, {"name": "fnn", **narrow}, tmp_path, "warm", init_from=str(first.folder))
    actual, bayes_auc = aucs_of(dataset, warm)
    assert actual >= dataset.required_auc(bayes_auc)
    cold, _ = aucs_of(dataset, run_in(dataset, {"name": "fnn", **narrow}, tmp_path, "cold"))
    assert cold < 0.65
