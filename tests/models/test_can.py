from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch, Jagged
from longrec.features.fields import Field, Fields
from longrec.models.can import CAN
from longrec.models.core.registry import build
from longrec.testing.batches import FEW, FIELDS, GAP, ITEM, RATING, pick, ragged, take, with_history
from longrec.testing.case import Case
from longrec.training.warm_start import inherit

SMALL: dict[str, object] = {"base": {"name": "deepfm"}, "pairs": [["item", "seen.item"]]}
RELEASED = {"micro": [16, 8, 4], "orders": 3}
PAPER = {"micro": [4, 4, 4], "bias": True, "orders": 2, "outputs": "last"}
FORMS = [RELEASED, PAPER, {**PAPER, "independent_orders": True, "outputs": "all", "unit_activation": "selu"}]


def co_actions(model: CAN, batch: Batch) -> Tensor:
    return model.co_actions(batch, model.embed(batch))


def can(settings: dict[str, object], fields: Fields = FEW) -> CAN:
    model = Case("can", settings).lively(fields)
    assert isinstance(model, CAN)
    return model


def looped(model: CAN, batch: Batch, history: str, w_BW: Tensor, p_NI: Tensor) -> Tensor:
    """The co-actions of one pair, row by row, event by event, order by order."""
    config, rows = model.config, []
    act = {"tanh": torch.tanh, "selu": torch.selu}[config.unit_activation]
    offsets = batch.histories[history].offsets.tolist()
    for row in range(batch.size):
        total = torch.zeros(config.orders, model.unit.outputs)
        for at in range(offsets[row], offsets[row + 1]):
            left = w_BW[row]
            for order in range(config.orders):
                h, outs = p_NI[at] ** (order + 1), []
                mine = left[order * model.unit.weights :] if config.independent_orders else left
                for number, (i, o) in enumerate(zip(config.micro, config.micro[1:]), 1):
                    w, mine = mine[: i * o].reshape(i, o), mine[i * o :]
                    b = None
                    if config.bias:
                        b, mine = mine[:o], mine[o:]
                    h = F.linear(h, w.t(), b)
                    h = act(h) if number < len(config.micro) - 1 else h
                    outs.append(h)
                total[order] += torch.cat(outs) if config.outputs == "all" else outs[-1]
        rows.append(total.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_it_equals_a_loop_over_samples(form: dict[str, object]) -> None:
    model, batch = can({**SMALL, **form}), ragged(9, fields=FEW)
    w = model.weights(batch).features["item"]
    p = model.inputs(batch).histories["seen"]["item"]
    actual = co_actions(model, batch)
    torch.testing.assert_close(actual, looped(model, batch, "seen", w, p), rtol=1e-4, atol=1e-4)
    assert actual.shape[1] == model.config.orders * model.unit.outputs
    if form is RELEASED:
        assert actual.shape[1] == 36


def test_a_every_pair_has_slices_of_its_own() -> None:
    """Three pairs, one of them with a field of the impression, against the loop."""
    pairs = [["item", "seen.item"], ["item", "seen.rating"], ["item", "user"], ["user", "seen.item"]]
    model, batch = can({**SMALL, **PAPER, "pairs": pairs}), ragged(9, fields=FEW)
    size, wide = model.unit.weights, 2 * model.unit.outputs
    owned, met = model.weights(batch).features, model.inputs(batch)
    assert model.weights.widths == {"user": size, "item": 3 * size}
    assert model.inputs.widths == {"user": 4, "item": 8, "rating": 4}
    actual = co_actions(model, batch).split(wide, 1)
    columns = met.histories["seen"]
    expected = looped(model, batch, "seen", owned["item"][:, :size], columns["item"][:, :4])
    torch.testing.assert_close(actual[0], expected, rtol=1e-4, atol=1e-4)
    expected = looped(model, batch, "seen", owned["item"][:, size : 2 * size], columns["rating"])
    torch.testing.assert_close(actual[1], expected, rtol=1e-4, atol=1e-4)
    expected = looped(model, batch, "seen", owned["user"], columns["item"][:, 4:])
    torch.testing.assert_close(actual[3], expected, rtol=1e-4, atol=1e-4)
    for row in range(9):  # a field is one thing that is met
        one = can_one(model, owned["item"][row, 2 * size :], met.features["user"][row])
        torch.testing.assert_close(actual[2][row], one, rtol=1e-4, atol=1e-4)


def can_one(model: CAN, w_W: Tensor, p_I: Tensor) -> Tensor:
    """The co-action unit of one thing, all orders."""
    powers = [p_I ** (order + 1) for order in range(model.config.orders)]
    return torch.cat([model.unit(p.view(1, 1, -1), w_W.unsqueeze(0)).flatten() for p in powers])


def test_b_the_length_of_other_rows_changes_nothing() -> None:
    model = can({**SMALL, **PAPER})
    batch = ragged(6, lengths=[0, 1, 3, 4, 5, 30], fields=FEW)
    actual = co_actions(model, batch)
    for row in range(6):
        torch.testing.assert_close(co_actions(model, take(batch, [row]))[0], actual[row], rtol=1e-4, atol=1e-5)


def test_c_the_order_of_events_does_not_matter() -> None:
    model, batch = can({**SMALL, **RELEASED}), ragged(1, lengths=[7], fields=FEW)
    column = batch.histories["seen"].columns["item"]
    turned = with_history(batch, "seen", {"item": pick(column, [3, 6, 0, 2, 5, 1, 4])})
    torch.testing.assert_close(co_actions(model, turned), co_actions(model, batch), rtol=1e-4, atol=1e-5)
    assert not model.order_matters


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_d_without_history_there_is_no_co_action(form: dict[str, object]) -> None:
    """With biases too: a unit that met nothing says nothing."""
    model, batch = can({**SMALL, **form}), ragged(3, lengths=[0, 2, 0], fields=FEW)
    actual = co_actions(model, batch)
    assert torch.equal(actual[[0, 2]], torch.zeros(2, actual.shape[1]))
    assert actual[1].abs().sum() > 0


def test_e_one_plain_layer_of_one_output_is_an_inner_product() -> None:
    form = {"micro": [5, 1], "orders": 1, "unit_activation": "linear"}
    model, batch = can({**SMALL, **form}), ragged(9, fields=FEW)
    w, p = model.weights(batch).features["item"], model.inputs(batch).histories["seen"]["item"]
    offsets = batch.histories["seen"].offsets.tolist()
    total = torch.stack([p[start:stop].sum(0) for start, stop in zip(offsets, offsets[1:])])
    torch.testing.assert_close(co_actions(model, batch), (w * total).sum(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_both_sides_and_the_base_have_tables_of_their_own() -> None:
    model, batch = can({**SMALL, "base": {"name": "din"}}), ragged(9, fields=FEW)
    three = [model.base.embeddings.table("item"), model.weights.table("item"), model.inputs.table("item")]
    assert len({table.data_ptr() for table in three}) == 3
    assert {id(table) for table in three} <= {id(table) for table in model.embedding_parameters()}
    base = model.base.represent(batch)
    before = co_actions(model, batch)
    with torch.no_grad():
        model.weights.table("item").mul_(2)
    assert torch.equal(model.base.represent(batch), base)
    assert not torch.allclose(co_actions(model, batch), before)


def test_a_slice_belongs_to_its_pair_and_with_independent_orders_to_its_power() -> None:
    pairs = [["item", "seen.item"], ["item", "seen.rating"]]
    model, batch = can({**SMALL, **PAPER, "pairs": pairs, "independent_orders": True}), ragged(9, fields=FEW)
    size, before = model.unit.weights, co_actions(model, batch)
    with torch.no_grad():
        model.weights.table("item")[:, 3 * size :].mul_(2)  # the second power of the second pair
    moved = (co_actions(model, batch) - before).abs().sum(0) > 0
    assert moved.tolist() == [False] * 12 + [True] * 4


def test_equation_5() -> None:
    model, batch = can({**SMALL, "base": {"name": "din"}}), ragged(9, fields=FEW)
    h, m = model.base.represent(batch), co_actions(model, batch)
    expected = model.base(batch) + model.join(torch.cat([h, m], 1)).squeeze(1)
    torch.testing.assert_close(model(batch), expected)
    assert model.explain(batch).keys() == {"seen"}


def test_pairs_are_of_the_same_type_unless_named() -> None:
    model = Case("can").build()
    assert isinstance(model, CAN)
    assert model.pairs == [
        *(("item", "seen", "item"), ("genres", "seen", "genres"), ("actors", "seen", "actors")),
        ("item", "liked", "item"),
    ]
    fields = Fields((Field("user", "id", 9, side="user"), ITEM), {"seen": (RATING, GAP)})
    alone = build({"name": "can", "base": {"name": "pooling"}}, fields)
    assert isinstance(alone, CAN)
    assert alone.pairs == [("item", "seen", "rating"), ("item", "seen", "time_gap")]


def test_values_of_several_ids_own_their_pooled_weights() -> None:
    model, batch = can({"base": {"name": "deepfm"}, "pairs": [["genres", "seen.genres"]]}, FIELDS), ragged(9)
    ids, events = batch.features["genres"], batch.histories["seen"].columns["genres"]
    assert isinstance(ids, Jagged)
    assert isinstance(events, Jagged)

    def pooled(values: Jagged, table: Tensor) -> Tensor:
        spans = zip(values.offsets.tolist(), values.offsets.tolist()[1:])
        rows = [table[values.values[start:stop].long()] for start, stop in spans]
        return torch.stack([row.mean(0) if len(row) else torch.zeros(table.shape[1]) for row in rows])

    w, p = pooled(ids, model.weights.table("genres")), pooled(events, model.inputs.table("genres"))
    torch.testing.assert_close(co_actions(model, batch), looped(model, batch, "seen", w, p), rtol=1e-4, atol=1e-4)


def test_pairs_that_are_not_there_are_refused_all_at_once() -> None:
    pairs = [["price", "seen.item"], ["item", "seen.price"], ["item", "user"], ["item", "user"]]
    with pytest.raises(ConfigError) as caught:
        build({"name": "can", "pairs": pairs}, FEW)
    assert [fault[:40] for fault in caught.value.faults] == [
        "model.pairs: 'price' is not an id of the",
        "model.pairs: 'seen.price' is not an id o",
        "model.pairs: names a pair twice",
    ]
    with pytest.raises(ConfigError, match="no history to pair the item with; name pairs of features"):
        build({"name": "can", "base": {"name": "fm"}}, Fields(FEW.features, {}))


def test_it_starts_from_a_run_of_its_base_and_does_without_histories() -> None:
    fields = Fields(FEW.features, {})
    model = build({"name": "can", "base": {"name": "deepfm"}, "pairs": [["item", "user"]]}, fields)
    assert not model.reads_history
    base = Case("deepfm").lively(fields)
    inherit(model, base, "fit.init_from")
    assert isinstance(model, CAN)
    assert torch.equal(model.base.first_order.table("item"), base.first_order.table("item"))


def test_memorized_pairs_are_learned_over_a_base_without_history_and_not_by_attention(tmp_path: Path) -> None:
    dataset, narrow = generate_dataset("co_action", users=1000, kinds=20), {"embedding_dim": 4}
    assert solves(dataset, {"name": "can", "base": {"name": "deepfm", **narrow}}, tmp_path, "can", epochs=5)
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, {"name": "din", **narrow}, tmp_path, "din", epochs=5))
    assert actual < dataset.required_auc(bayes_auc) - 0.05
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "deepfm", **narrow}, tmp_path, "deepfm", epochs=1))
    assert abs(actual - 0.5) < 0.06
