"""HUP: the tests that its sections of the notes list, by name, and the equations row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from synthetic_runs import aucs_of, run_in
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.computed_columns import compute_time_since_previous
from longrec.features.fields import Field, Fields
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import build
from longrec.models.hup import HUP, _Level, hard_sigmoid
from longrec.nn.level_steps import LevelSteps
from longrec.nn.lstm import LSTM
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, ITEM, RATING, SINCE, grouped, ragged, repeated, shared, with_history
from longrec.testing.case import Case
from longrec.testing.expect import expect_close

CATEGORY = Field("category", "id", 8, side="item")
THREE = Fields((Field("user", "id", 40, side="user"), ITEM, CATEGORY), {"seen": (ITEM, CATEGORY, RATING, SINCE)})
SMALL: dict[str, Any] = {"hidden": 6, "mlp": [16]}


def hup(settings: Mapping[str, Any] = SMALL, fields: Fields = THREE) -> HUP:
    model = Case("hup", dict(settings)).lively(fields)
    assert isinstance(model, HUP)
    return model


def level_of(model: HUP, number: int) -> _Level:
    return cast(_Level, model.levels[f"level_seen_{number}"])


def rows(*lengths: int) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def in_visits(batch: Batch) -> Batch:
    """Events in runs on the same item, and items in runs of the same category."""
    columns = batch.histories["seen"].columns
    positions = len(cast(Tensor, columns["item"]))
    torch.manual_seed(positions)
    item = 2 + (torch.rand(positions) < 0.5).cumsum(0).int() % 58
    return with_history(batch, "seen", {"item": item, "category": 2 + (item // 3) % 6})


def test_the_equations_row_by_row() -> None:
    model, batch = hup(), in_visits(ragged(7, longest=12, fields=THREE))
    embedded, expected, steps = model.embeddings(batch), [], [0, 0, 0]
    columns, now, ids = embedded.histories["seen"], embedded.features, batch.histories["seen"].columns
    for row in range(7):
        span = range(*batch.histories["seen"].offsets[row : row + 2].tolist())
        names = ("item", "category", "rating", "time_since_previous")
        here, below = list(span), {at: torch.cat([columns[name][at] for name in names]) for at in span}
        query = torch.cat([now["item"][row], now["category"][row]])
        inputs = [now["user"][row], query]
        for number, unit in enumerate([None, "item", "category"]):
            if unit is not None:
                column = cast(Tensor, ids[unit])
                here = [at for at in here if at + 1 == span.stop or column[at + 1] != column[at]]
                own = ("item", "category") if unit == "item" else ("category",)
                below = {at: torch.cat([*(columns[name][at] for name in own), below[at]]) for at in here}
            steps[number] += len(here)
            below, o = walked(level_of(model, number), here, below, columns["rating"], columns["time_since_previous"])
            inputs += [o, o * (now["category"][row] if unit == "category" else query)]
        expected.append(model.top(torch.cat(inputs).unsqueeze(0))[0, 0])
    assert steps[0] > steps[1] > steps[2] > 0
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-4, atol=1e-5)


def walked(
    level: _Level, here: list[int], x: dict[int, Tensor], weight: Tensor, gap: Tensor
) -> tuple[dict[int, Tensor], Tensor]:
    """The states at the steps of one row, and the output."""
    unit, states = level.recurrence, {}
    h, c = torch.zeros(unit.hidden), torch.zeros(unit.hidden)
    assert level.of_input is not None
    for at in here:
        i, f, o, g = (unit.weight @ x[at] + unit.recurrent @ h + unit.bias).chunk(4)
        for_gap, for_weight = linear(x[at], level.of_input.weight, level.of_input.bias).chunk(2)
        t = hard_sigmoid(for_gap + cast(Tensor, level.scales["gap"].weight) @ gap[at])
        w = hard_sigmoid(for_weight + cast(Tensor, level.scales["weight"].weight) @ weight[at])
        c = f.sigmoid() * c + i.sigmoid() * t * w * g.tanh()
        h = o.sigmoid() * c.tanh()
        states[at] = h
    pooled = torch.zeros(unit.hidden)
    if here:
        scores = [level.of_event.weight[0] @ torch.cat([states[at], weight[at]]) + level.of_event.bias[0]
                  + level.of_last.weight[0] @ h for at in here]  # fmt: skip
        pooled = torch.stack(scores).tanh().softmax(0) @ torch.stack([states[at] for at in here])
    return states, linear(pooled, level.out.weight, level.out.bias).tanh()


def test_one_item_throughout_is_one_step_of_the_item_level(monkeypatch: pytest.MonkeyPatch) -> None:
    model, walks = hup(), []
    run = LSTM.states_and_last

    def noted(unit: LSTM, x_UI: Tensor, *arguments: Any, **named: Any) -> Any:
        walks.append(len(x_UI))
        return run(unit, x_UI, *arguments, **named)

    monkeypatch.setattr(LSTM, "states_and_last", noted)
    batch = ragged(3, lengths=[5, 0, 7], fields=THREE)
    same = {name: torch.full((12,), 4) for name in ("item", "category")}
    model(with_history(batch, "seen", same))
    assert walks == [12, 2, 2]
    walks.clear()
    model(with_history(batch, "seen", {**same, "item": torch.arange(12) + 2}))
    assert walks == [12, 12, 2]


@pytest.mark.parametrize("settings", [SMALL, *HUP.variants], ids=str)
def test_steps_taken_out_equal_steps_masked(settings: dict[str, Any]) -> None:
    """The gathered form of ragged rows, and the form in which programs run."""
    model = hup(settings)
    for candidates, events in ((3, 12), (2, 1), (4, 0)):
        batch = in_visits(shared(candidates, events, fields=THREE))
        expect_close(model(batch), model(repeated(batch, THREE)))
        weights = model.explain(batch)["seen"]
        assert weights.shape == (candidates, events)
        expect_close(weights.flatten(), model.explain(repeated(batch, THREE))["seen"])
        expect_close(weights.sum(1), torch.full((candidates,), float(events > 0)))


def test_without_weights_and_times_it_is_torchs_lstm() -> None:
    bare = Fields((ITEM,), {"seen": (ITEM,)})
    level = level_of(hup(SMALL, bare), 0)
    assert level.of_input is None
    own, order = nn.LSTM(16, 6, batch_first=True), [0, 1, 3, 2]  # torch's gates are i, f, g, o
    unit, x = level.recurrence, torch.randn(9, 16)
    for name, weights in (("weight_ih_l0", unit.weight), ("weight_hh_l0", unit.recurrent), ("bias_ih_l0", unit.bias)):
        own.get_parameter(name).data = torch.cat([weights.data.chunk(4)[at] for at in order])
    own.bias_hh_l0.data.zero_()
    _, h, _ = level(x, x[:, :0], x[:, :0], LevelSteps(rows(9)))
    torch.testing.assert_close(h, own(x.unsqueeze(0))[0][0], rtol=1e-4, atol=1e-5)
    # And with both where T = W = 1: 0.2 y + 0.5 beyond 1 is 1.
    both = level_of(hup(), 1)
    assert both.of_input is not None
    both.of_input.bias.data[:] = 1e3
    x, zeros = torch.randn(9, 38), torch.randn(9, 16)
    _, h, _ = both(x, zeros, zeros, LevelSteps(rows(9)))
    torch.testing.assert_close(h, both.recurrence.states(x, rows(9)))


def test_the_first_event_of_a_history_has_no_interval() -> None:
    """Missing, as data preparation tells it, is no bucket: neither that of no time nor any other is read for it."""
    ids = compute_time_since_previous(np.array([5_000, 9_000, 8_000, 8_000]), np.array([0, 2, 4]))
    assert ids.tolist() == [0, 4, 0, 2]
    model, batch = hup(), ragged(2, lengths=[2, 2], fields=THREE)
    batch = with_history(batch, "seen", {"time_since_previous": torch.from_numpy(ids)})
    model(batch).sum().backward()
    grad = model.embeddings.table("time_since_previous").grad
    assert grad is not None
    assert grad.coalesce().to_dense().abs().sum(1).nonzero().squeeze(1).tolist() == [0, 2, 4]
    at_once = with_history(batch, "seen", {"time_since_previous": torch.tensor([2, 4, 2, 2])})
    assert ((model(at_once) - model(batch)).abs() > 1e-5).all()


def test_longer_neighbors_change_nothing() -> None:
    """Padding is what a longer row in the batch would bring."""
    model = hup()
    batch = in_visits(ragged(2, lengths=[4, 30], fields=THREE))
    events = batch.histories["seen"]
    first = {name: cast(Tensor, column)[:4] for name, column in events.columns.items()}
    alone = Batch.single(
        1, {name: cast(Tensor, column)[:1] for name, column in batch.features.items()},
        {"seen": HistoryBatch(first, events.offsets[:2])},
    )  # fmt: skip
    torch.testing.assert_close(model(alone)[0], model(batch)[0])


def test_an_item_enters_by_its_last_event_and_nothing_later() -> None:
    steps = LevelSteps(rows(6, 0, 3))
    item, category = torch.tensor([5, 5, 5, 7, 7, 5, 5, 5, 6]), torch.tensor([3, 3, 3, 3, 3, 3, 3, 3, 4])
    items = steps.ends(item)
    categories = items.ends(category)
    assert items.mask is not None
    assert categories.mask is not None
    assert items.mask.nonzero().squeeze(1).tolist() == [2, 4, 5, 7, 8]
    assert items.segments.offsets.tolist() == [0, 3, 3, 5]
    assert categories.mask.nonzero().squeeze(1).tolist() == [5, 7, 8]
    h = torch.arange(9.0).unsqueeze(1)
    of_items = items.of_those(h, steps)
    assert of_items.squeeze(1).tolist() == [2, 4, 5, 7, 8]
    assert categories.of_those(of_items, items).squeeze(1).tolist() == [5, 7, 8]
    assert categories.to_all(torch.ones(3)).tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 1]
    # What is done to the next item is no part of the one before.
    level, x = level_of(hup(), 0), torch.randn(9, 64)
    inputs = x[:, :16]
    changed = x + torch.cat([torch.zeros(3, 64), torch.randn(6, 64)])
    torch.testing.assert_close(level(changed, inputs, inputs, steps)[1][:3], level(x, inputs, inputs, steps)[1][:3])


def test_ids_that_say_nothing_change_with_every_event() -> None:
    ids = torch.tensor([0, 0, 1, 1, 4, 4])
    for whole in (rows(6), Segments(torch.tensor([0, 6]), 2, 6, shared=True)):
        mask = LevelSteps(whole).ends(ids).mask
        assert mask is not None
        assert mask.tolist() == [True, True, True, True, False, True]


def test_the_loss_is_of_the_label_and_of_what_came_next() -> None:
    model, batch = hup({**SMALL, "aux_weight": 0.5}), in_visits(ragged(9, fields=THREE))
    levels = model._run_levels(batch, model.embeddings(batch))["seen"]
    assert [level.target.shape[1] for level in levels] == [32, 32, 16]
    expected: list[Tensor] = []
    assert batch.label is not None
    for row, (start, stop) in enumerate(pairwise(batch.histories["seen"].offsets.tolist())):
        if batch.label[row] and stop > start:
            expected += [1 - cosine_similarity(level.output[row], level.target[row], 0) for level in levels]
    torch.testing.assert_close(model.loss(batch), bce_loss(model(batch), batch) + 0.5 * torch.stack(expected).mean())
    none = replace(batch, label=torch.zeros(9))
    torch.testing.assert_close(model.loss(none), bce_loss(model(none), none))


def test_a_loss_embeds_and_steps_once() -> None:
    """The cosines are those of the outputs that the logits come from."""
    model, batch, calls = hup(), in_visits(ragged(9, fields=THREE)), []
    model.embeddings.register_forward_hook(lambda *_: calls.append("embed"))
    for level in model.levels.values():
        level.register_forward_hook(lambda *_: calls.append("level"))
    model.loss(batch)
    assert calls == ["embed", *["level"] * 3]


def test_candidates_of_a_request_have_its_outputs() -> None:
    """Levels step once per request. A candidate with label 1 is an item that came next, whichever it is."""
    model, batch = hup({**SMALL, "aux_weight": 0.5}), in_visits(grouped([2, 0, 0, 1, 3, 3, 2], fields=THREE))
    lengths: list[int] = []
    level_of(model, 0).register_forward_hook(lambda _, inputs, __: lengths.append(len(inputs[0])))
    assert batch.label is not None
    assert 0 < batch.label.sum() < 7
    losses = [model.loss(one) for one in (batch, batch.ungroup())]
    torch.testing.assert_close(*losses)
    offsets = batch.histories["seen"].offsets
    assert lengths == [int(offsets[-1]), int(batch.ungroup().histories["seen"].offsets[-1])]
    weights = [model.explain(one)["seen"] for one in (batch, batch.ungroup())]
    torch.testing.assert_close(*weights)


def test_no_gradient_of_a_cosine_enters_what_came_next() -> None:
    model, batch = hup(), replace(ragged(1, lengths=[5], fields=THREE), label=torch.ones(1))
    levels = model._run_levels(batch, model.embeddings(batch))["seen"]
    model.auxiliary(batch, "seen", levels).backward()
    item, seen = (cast(Tensor, column) for column in (batch.features["item"], batch.histories["seen"].columns["item"]))
    grad = model.embeddings.table("item").grad
    assert grad is not None
    moved = grad.coalesce().to_dense().abs().sum(1).nonzero().squeeze(1)
    assert int(item) not in moved.tolist()
    assert set(moved.tolist()) == set(seen.tolist()) - {int(item)}


def test_which_columns_make_the_levels() -> None:
    assert hup().units == {"seen": ["item", "category"]}
    assert hup().weights == {"seen": ["rating"]}
    assert hup(SMALL, FEW).units == {"seen": ["item"]}
    assert hup({**SMALL, "item": "category", "category": "item"}).units == {"seen": ["category", "item"]}
    assert hup({**SMALL, "category": "item"}).units == {"seen": ["category", "item"]}


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="hup reads a history, and the schema has none"):
        build({"name": "hup"}, Fields((ITEM,), {}))
    with pytest.raises(ConfigError) as error:
        build({"name": "hup", "item": "rating", "category": "nothing"}, THREE)
    message = "must be an id column of a history and of the candidate (item, category), got"
    assert error.value.faults == [f"model.item: {message} 'rating'", f"model.category: {message} 'nothing'"]
    with pytest.raises(ConfigError, match=r"model\.category: must be another column than model\.item, got 'item'"):
        build({"name": "hup", "item": "item", "category": "item"}, THREE)


def test_the_order_of_actions_on_an_item_is_learned(tmp_path: Path) -> None:
    dataset = generate_dataset("micro_behaviors")
    (model,) = dataset.must
    assert model["name"] == "hup"
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, model, tmp_path))
    assert actual >= dataset.required_auc(bayes_auc)


def test_the_order_of_actions_is_not_learned_event_by_event(tmp_path: Path) -> None:
    dataset = generate_dataset("micro_behaviors")
    assert {"name": "din"} in dataset.must_not
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "din"}, tmp_path))
    assert abs(actual - 0.5) < 0.06
