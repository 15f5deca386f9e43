"""ATRank: the tests that its section of the notes lists, the equations row by row, and attention across histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.atrank import ATRank
from longrec.models.core.registry import build
from longrec.nn.transformer import EncoderLayer
from longrec.testing.batches import (
    FEW,
    FIELDS,
    GAP,
    ITEM,
    RATING,
    grouped,
    pick,
    ragged,
    repeated,
    shared,
    take,
    with_history,
)
from longrec.testing.case import Case

SETTINGS: list[dict[str, Any]] = [{"width": 12, "spaces": 3}, *ATRank.variants]
TWO = Fields(FEW.features, {"seen": (ITEM, RATING), "liked": (ITEM, GAP)})


def atrank(settings: dict[str, Any], fields: Fields = TWO) -> ATRank:
    model = Case("atrank", settings).lively(fields)
    assert isinstance(model, ATRank)
    return model


def layer_of(layer: EncoderLayer, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 3 to 7 of queries y over behaviors x, space by space, and the weights ``[spaces, M, T]``."""
    w_q, w_k, w_v = layer.inner.weight.chunk(3)
    assert layer.bias is not None
    size = len(w_q) // layer.heads
    spaces, weights = [], []
    for space in range(layer.heads):
        own = slice(space * size, (space + 1) * size)
        s_k, f_q = (y @ w_q[own].t() + layer.bias[0, own]).relu(), (x @ w_v[own].t() + layer.bias[1, own]).relu()
        if layer.score == "bilinear":
            a = s_k @ w_k[own] @ x.t()
        else:
            a = s_k @ (x @ w_k[own].t() + layer.bias[2, own]).relu().t() / size**0.5
        weights.append(a.softmax(1))
        spaces.append(weights[-1] @ f_q)
    first, second = cast(Any, layer.norms[0]), cast(Any, layer.norms[1])
    c = F.layer_norm(y + torch.cat(spaces, 1) @ layer.outer.weight.t(), y.shape[1:], first.weight, first.bias)
    h = (c @ layer.first.weight.t() + layer.first.bias).relu()
    c = c + h @ layer.second.weight.t() + layer.second.bias
    return F.layer_norm(c, y.shape[1:], second.weight, second.bias), torch.stack(weights)


def as_written(model: ATRank, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the mean weights of each row's behaviors, those of the first history first."""
    embedded, logits, weights_of_rows = model.embeddings(batch), [], []
    for row in range(batch.size):
        events = []
        for group, (history, columns) in zip(model.groups, embedded.histories.items()):
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            events.append(group(torch.cat(list(columns.values()), 1)[start:stop]))
        x = torch.cat(events)
        for block in model.blocks:
            x = layer_of(cast(EncoderLayer, block), x, x)[0]
        s = model.target(torch.cat([embedded.features[name] for name in model.candidate], 1)[row : row + 1])
        if len(x):
            e, weights = layer_of(model.asking, s, x)
            weights_of_rows.append(weights[:, 0].mean(0))
        else:
            e = model.asking.rest(s, torch.zeros(1, model.asking.outer.in_features))
            weights_of_rows.append(x[:, 0])
        if model.top is not None:
            fields = [vectors[row : row + 1] for vectors in embedded.features.values()]
            logits.append(model.top(torch.cat([*fields, e, e * s], 1)).squeeze())
        else:
            assert model.biases is not None
            own = sum(vectors[row].sum() for vectors in model.biases(batch).features.values())
            logits.append((e * s).sum() + own + model.bias.squeeze())
    return torch.stack(logits), weights_of_rows


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_space_by_space(settings: dict[str, Any]) -> None:
    """Heads are split, and put side by side again, in one order; the logit is <e_u, s_t> and a bias of every field."""
    model, batch = atrank(settings), ragged(40, fields=TWO, longest=9)
    torch.testing.assert_close(model(batch), as_written(model, batch)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_order_is_not_seen_when_time_buckets_are_fixed(settings: dict[str, Any]) -> None:
    model, batch = atrank(settings), ragged(4, fields=TWO, lengths=[6] * 4)
    order = torch.cat([torch.randperm(6, generator=torch.Generator().manual_seed(row)) + 6 * row for row in range(4)])
    columns = batch.histories["liked"].columns
    turned = with_history(batch, "liked", {name: pick(column, order) for name, column in columns.items()})
    torch.testing.assert_close(model(turned), model(batch), rtol=1e-4, atol=1e-5)
    gaps = with_history(batch, "liked", {"time_gap": pick(columns["time_gap"], order)})
    assert (model(gaps) - model(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_padded_is_masked_in_both_attentions(settings: dict[str, Any]) -> None:
    """Padding is what a longer row beside it brings."""
    model, batch = atrank(settings), ragged(3, fields=TWO, lengths=[3, 4, 40])
    together = model(batch)
    torch.testing.assert_close(model(take(batch, [0])), together[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(take(batch, [1, 0])), together[[1, 0]], rtol=1e-4, atol=1e-5)


def test_events_of_one_history_attend_to_those_of_another() -> None:
    """Not only through the softmax of the candidate, which leaves the shares of the others as they are."""
    model, batch = atrank({"width": 12, "spaces": 3}), ragged(9, fields=TWO, lengths=[5] * 9)
    changed = with_history(batch, "liked", {"item": (cast(Tensor, batch.histories["liked"].columns["item"]) + 1) % 60})
    before, after = (model.explain(one)["seen"].view(9, 5) for one in (batch, changed))
    shares = [w / w.sum(1, keepdim=True) for w in (before, after)]
    assert (shares[0] - shares[1]).abs().max() > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_score_by_the_attention_of_the_candidate(settings: dict[str, Any]) -> None:
    model, batch, one = atrank(settings), ragged(9, fields=TWO), shared(4, 5, fields=TWO)
    expected, explanation = as_written(model, batch)[1], model.explain(batch)
    for row in range(9):
        spans = [slice(*batch.histories[name].offsets[row : row + 2].tolist()) for name in TWO.histories]
        actual = torch.cat([explanation[name][at] for name, at in zip(TWO.histories, spans, strict=True)])
        torch.testing.assert_close(actual, expected[row], rtol=1e-4, atol=1e-5)
    together = model.explain(repeated(one, TWO))
    for name, w_BT in model.explain(one).items():
        torch.testing.assert_close(w_BT.flatten(), together[name], rtol=1e-4, atol=1e-5)
    several = grouped([2, 0, 2, 1], fields=TWO)
    for name, w_N in model.explain(several).items():
        torch.testing.assert_close(w_N, model.explain(several.ungroup())[name], rtol=1e-4, atol=1e-5)


def test_a_request_looks_at_its_history_once() -> None:
    model, rows = atrank({"width": 12, "spaces": 3}, FIELDS), []
    block = cast(EncoderLayer, model.blocks[0])
    block.inner.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model(shared(6, 20))
    batch = grouped([2, 0, 2, 1, 1])
    model(batch)
    assert rows == [40, sum(int(history.offsets[-1]) for history in batch.histories.values())]


def test_schemas_that_atrank_cannot_use_are_refused() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="atrank reads a history, and the schema has none"):
        build({"name": "atrank"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError, match="atrank needs candidate features"):
        build({"name": "atrank"}, Fields((user,), {"a": (RATING,)}))


SMALL = {"name": "atrank", "width": 16, "spaces": 2, "hidden": 16, "embedding_dim": 8, "init_std": 0.1}


def test_the_candidate_finds_an_interest_and_fields_alone_do_not(tmp_path: Path) -> None:
    dataset = generate_dataset("one_interest", users=800)
    assert solves(dataset, SMALL, tmp_path, "atrank", epochs=3, lr=1e-2)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "lr"}, tmp_path, "lr", epochs=1))
    assert abs(actual - 0.5) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"score": "dot"}, {"prediction": "mlp", "mlp": [16]}], ids=str)
def test_every_form_finds_an_interest(settings: dict[str, Any], tmp_path: Path) -> None:
    assert solves(generate_dataset("one_interest"), {**SMALL, **settings}, tmp_path)
