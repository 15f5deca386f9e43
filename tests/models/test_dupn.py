"""DUPN: the tests that its section of the notes lists, by name, and the equations row by row."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in
from torch import Tensor, nn

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.losses import bce_loss
from longrec.models.core.multi_task import masked_bce_loss
from longrec.models.core.registry import build
from longrec.models.dupn import DUPN, _Path
from longrec.nn.lstm import LSTM
from longrec.nn.mlp import MLP
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, FIELDS, ITEM, grouped, ragged, shared
from longrec.testing.case import Case

SMALL: dict[str, Any] = {"hidden": 6, "attention": [5], "mlp": [16]}
SETTINGS: list[dict[str, Any]] = [SMALL, *DUPN.variants]


def dupn(settings: Mapping[str, Any], fields: Fields = FEW) -> DUPN:
    model = Case("dupn", dict(settings)).lively(fields)
    assert isinstance(model, DUPN)
    return model


def path_of(model: DUPN, history: str = "seen") -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def labeled_batch(rows: int, fields: Fields = FEW, **targets: list[float]) -> Batch:
    batch = ragged(rows, fields=fields)
    return replace(batch, task_labels={name: torch.tensor(values) for name, values in targets.items()})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_row_by_row(settings: dict[str, Any]) -> None:
    model, batch = dupn(settings), ragged(7, fields=FEW)
    path, embedded, expected = path_of(model), model.embeddings(batch), []
    events, now = embedded.histories["seen"], embedded.features
    for row in range(7):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        u = torch.cat([now["user"][row], now["taste"][row]])
        v = torch.cat([now["item"][row], now["price"][row]])
        asking = torch.cat([u, v]) if model.config.candidate else u
        assert path.gates is not None
        assert path.of_row is not None
        h, c, states, scores = torch.zeros(model.config.hidden), torch.zeros(model.config.hidden), [], []
        for at in range(start, stop):
            e, p = events["item"][at], events["rating"][at]
            unit = path.recurrence
            i, f, o, g = (unit.weight @ e + unit.recurrent @ h + unit.bias).chunk(4)
            i, f, o = ((gate + term).sigmoid() for gate, term in zip((i, f, o), (path.gates.weight @ p).chunk(3)))
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            states.append(h)
            hidden = path.of_event.weight @ torch.cat([h, p]) + path.of_event.bias + path.of_row.weight @ asking
            scores.append(path.rest(hidden.relu().unsqueeze(0)).squeeze())
        rep = torch.zeros_like(h)
        if states:
            rep = torch.stack(scores).softmax(0) @ torch.stack(states)
        torch.testing.assert_close(model.user(batch)[row], torch.cat([rep, u]), rtol=1e-4, atol=1e-5)
        expected.append(torch.cat([top(torch.cat([rep, u, v]).unsqueeze(0))[0] for top in model.tops]))
    torch.testing.assert_close(model.logits(batch), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_without_properties_it_is_torchs_lstm() -> None:
    path = path_of(dupn(SMALL))
    assert path.gates is not None
    path.gates.weight.data.zero_()
    own = nn.LSTM(16, 6, batch_first=True)
    order = [0, 1, 3, 2]  # torch's gates are i, f, g, o
    unit = path.recurrence
    for name, weights in (("weight_ih_l0", unit.weight), ("weight_hh_l0", unit.recurrent), ("bias_ih_l0", unit.bias)):
        own.get_parameter(name).data = torch.cat([weights.data.chunk(4)[at] for at in order])
    own.bias_hh_l0.data.zero_()
    e, p = torch.randn(9, 16), torch.randn(9, 16)
    actual = path.states(e, p, Segments(torch.tensor([0, 9]), 1, 9))
    torch.testing.assert_close(actual, own(e.unsqueeze(0))[0][0], rtol=1e-4, atol=1e-5)


def test_a_property_changes_the_gates_only() -> None:
    """Gates that are open anyhow let everything pass: nothing of a property is left."""
    path, one = path_of(dupn(SMALL)), Segments(torch.tensor([0, 9]), 1, 9)
    e, p, other = torch.randn(9, 16), torch.randn(9, 16), torch.randn(9, 16)
    assert (path.states(e, p, one) - path.states(e, other, one)).abs().max() > 0.01
    path.recurrence.bias.data[:18] = 1e4
    assert torch.equal(path.states(e, p, one), path.states(e, other, one))
    assert (path.states(e, p, one) - path.states(e + 1, p, one)).abs().max() > 0.01


def test_longer_neighbors_change_nothing() -> None:
    """Padding is what a longer row in the batch would bring."""
    path = path_of(dupn(SMALL))
    e, p, x = torch.randn(44, 16), torch.randn(44, 16), torch.randn(2, 32)
    alone, both = Segments(torch.tensor([0, 4]), 1, 4), Segments(torch.tensor([0, 4, 44]), 2, 44)
    one, one_w = path(e[:4], p[:4], x[:1], alone)
    two, two_w = path(e, p, x, both)
    torch.testing.assert_close(two[:1], one)
    torch.testing.assert_close(two_w[:4], one_w)


def test_a_new_head_over_a_frozen_trunk_changes_no_other_task() -> None:
    """Universal representations: what one task learns on them costs the others nothing, to the bit."""
    model = dupn({**SMALL, "tasks": {"bought": 0.5}})
    batch = labeled_batch(64, bought=[0.0, 1.0] * 32)
    before = model.logits(batch).detach()
    new = list(model.tops[1].parameters())
    for parameter in model.parameters():
        parameter.requires_grad = any(parameter is one for one in new)
    model.tops[1].train()
    optimizer = torch.optim.Adam(new, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    after = model.eval().logits(batch).detach()
    assert torch.equal(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-3


def test_the_loss_is_the_weighted_sum_of_the_tasks() -> None:
    model = dupn({**SMALL, "tasks": {"bought": 0.5, "kept": 2.0}, "label_weight": 3.0})
    assert model.targets == ("bought", "kept")
    batch = labeled_batch(4, bought=[1.0, float("nan"), 0.0, 1.0], kept=[float("nan")] * 4)
    logits = model.logits(batch)
    expected = 3 * bce_loss(logits[:, 0], batch) + 0.5 * masked_bce_loss(logits[:, 1], batch, "bought")
    torch.testing.assert_close(model.loss(batch), expected)


def test_tasks_may_rank_together() -> None:
    model = dupn({**SMALL, "tasks": {"bought": 1.0}, "rank_by": {"label": 1.0, "bought": 2.0}})
    batch = ragged(9, fields=FEW)
    label, bought = model.logits(batch).sigmoid().unbind(1)
    torch.testing.assert_close(model(batch).sigmoid(), label * bought**2)
    alone = dupn({**SMALL, "tasks": {"bought": 1.0}})
    torch.testing.assert_close(alone(batch), alone.logits(batch)[:, 0])


def test_one_vector_of_a_user_serves_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, walked = dupn(SMALL), shared(5, 4, fields=FEW), []
    states = LSTM.states

    def noted(unit: LSTM, x_UI: Tensor, *rest: Any) -> Tensor:
        walked.append(len(x_UI))
        return states(unit, x_UI, *rest)

    monkeypatch.setattr(LSTM, "states", noted)
    user = model.user(batch)
    assert walked == [4]
    assert torch.equal(user, user[:1].expand(5, -1))
    weights = model.explain(batch)["seen"]
    assert weights.shape == (5, 4)
    assert torch.equal(weights, weights[:1].expand(5, -1))
    with_candidate = dupn({**SMALL, "candidate": True})
    assert (with_candidate.user(batch)[0] - with_candidate.user(batch)[1]).abs().max() > 1e-4
    torch.testing.assert_close(with_candidate.explain(batch)["seen"].sum(1), torch.ones(5))
    together = grouped([1, 2, 0, 2, 2], fields=FEW)
    events = int(together.histories["seen"].offsets[-1])
    for each in (model, with_candidate):
        walked.clear()
        actual = each.user(together)
        assert walked == [events]
        torch.testing.assert_close(actual, each.user(together.ungroup()), rtol=1e-4, atol=1e-5)
        expected = each.explain(together.ungroup())["seen"]
        torch.testing.assert_close(each.explain(together)["seen"], expected, rtol=1e-4, atol=1e-5)


def test_properties_are_the_columns_that_no_candidate_has() -> None:
    model = dupn(SMALL, FIELDS)
    assert model.items == {"seen": ["item", "genres", "actors"], "liked": ["item"]}
    assert model.properties["seen"] == ["rating", "time_gap"]
    assert model.query_features == ["user", "age", "hobbies", "taste", "hour"]
    batch = ragged(6, fields=FIELDS)
    for row in range(6):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        total = model.explain(batch)["seen"][start:stop].sum()
        torch.testing.assert_close(total, torch.tensor(float(stop > start)))


def test_a_query_may_be_empty_and_events_without_properties() -> None:
    bare = Fields((ITEM,), {"seen": (ITEM,)})
    model, batch = dupn(SMALL, bare), ragged(9, fields=bare)
    assert path_of(model).gates is None
    assert path_of(model).of_row is None
    assert model(batch).isfinite().all()
    assert cast(MLP, model.tops[0]).layers[0].linear.in_features == 6 + 16


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="dupn reads a history, and the schema has none"):
        build({"name": "dupn"}, Fields((ITEM,), {}))
    with pytest.raises(ConfigError, match="rank_by: 'bought' is not a task"):
        build({"name": "dupn", "rank_by": {"bought": 1}}, FEW)
    with pytest.raises(ConfigError, match="dupn needs a column that is a feature of the candidate too"):
        build({"name": "dupn"}, Fields((ITEM,), {"seen": (Field("rating", "id", 8),)}))


def _measure(model: Mapping[str, Any], folder: Path, without: str = "", **parameters: Any) -> tuple[float, float]:
    """AUC and bar in the world where the property of an event decides."""
    dataset = generate_dataset("bought_or_passed", **parameters)
    if without:
        schema = copy.deepcopy(dict(dataset.schema))
        schema["histories"]["seen"]["features"].remove(without)
        dataset = replace(dataset, schema=schema)
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, model, folder, epochs=4 if parameters else 6))
    return actual, dataset.required_auc(bayes_auc)


@pytest.mark.slow
def test_what_was_done_with_each_of_several_categories_is_learned(tmp_path: Path) -> None:
    model = generate_dataset("bought_or_passed", 2).must[0]
    assert model["name"] == "dupn"
    actual, bar = _measure(model, tmp_path)
    assert actual >= bar


FEW_SEEN = {"users": 600, "seen": 2}


def test_what_was_done_is_learned(tmp_path: Path) -> None:
    actual, bar = _measure({"name": "dupn", "hidden": 16, "mlp": [64]}, tmp_path, **FEW_SEEN)
    assert actual >= bar


@pytest.mark.parametrize(("model", "without"), [("pooling", ""), ("dupn", "done")])
def test_what_was_done_is_not_learned_by_sums_or_without_the_property(model: str, without: str, tmp_path: Path) -> None:
    assert {"name": "pooling"} in generate_dataset("bought_or_passed", 2).must_not
    assert abs(_measure({"name": model, "mlp": [16]}, tmp_path, without, **FEW_SEEN)[0] - 0.5) < 0.06
