from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.din import DIN
from longrec.testing.batches import FIELDS, GAP, ITEM, RATING, offsets, pick, ragged, repeated, shared
from longrec.testing.case import Case

SETTINGS = [{}, *DIN.variants]


def din(settings: dict[str, object]) -> DIN:
    model = Case("din", settings).lively()
    assert isinstance(model, DIN)
    return model


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equation_3_position_by_position(settings: dict[str, object]) -> None:
    """The whole model again as loops over rows and events, from its weights, without a layer of the attention."""
    model, batch = din(settings), ragged(9)
    embedded = model.embeddings(batch)
    logits = []
    for row in range(9):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, unit in zip(FIELDS.histories, model.units):
            paired = [field.name for field in FIELDS.target_columns(history)]
            alone = [field.name for field in FIELDS.histories[history] if field.name not in paired]
            q = torch.cat([embedded.features[name][row] for name in paired])
            columns = embedded.histories[history]
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            keys, scores = [], []
            for at in range(start, stop):
                same = torch.cat([columns[name][at] for name in paired])
                k = torch.cat([same, *(columns[name][at] for name in alone)])
                first = unit.first
                h = first.weight_q @ q + first.weight_k @ k + first.weight_m @ (q * same) + first.bias
                h = h.relu() if unit.activation is None else unit.activation(h.unsqueeze(0)).squeeze(0)
                scores.append(unit.rest(h.unsqueeze(0)).squeeze())
                keys.append(k)
            u = torch.zeros(unit.first.key)
            if keys:
                a = torch.stack(scores)
                u = (a.softmax(0) if model.config.softmax else a) @ torch.stack(keys)
            inputs.append(u)
            if model.config.product:
                inputs.append(q * u[: len(q)])
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


def pooled(model: DIN, batch: Batch) -> list[Tensor]:
    """The pooled vector of every history, as the top MLP gets it."""
    seen: list[Tensor] = []
    hooks = [unit.register_forward_hook(lambda *arguments: seen.append(arguments[2])) for unit in model.units]
    model(batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("softmax", "factor"), [(False, 2), (True, 1)])
def test_every_event_twice_doubles_the_interest_unless_normalized(softmax: bool, factor: int) -> None:
    model, batch = din({"softmax": softmax}), ragged(9)
    histories = {}
    for name, events in batch.histories.items():
        twice = [at for at in range(int(events.offsets[-1])) for _ in (0, 1)]
        columns = {column: pick(values, twice) for column, values in events.columns.items()}
        histories[name] = HistoryBatch(columns, events.offsets * 2)
    doubled = Batch.single(batch.size, batch.features, histories)
    for once, again in zip(pooled(model, batch), pooled(model, doubled), strict=True):
        torch.testing.assert_close(again, factor * once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_score_by_its_attention(settings: dict[str, object]) -> None:
    model, batch = din(settings), ragged(9)
    explanation = model.explain(batch)
    assert set(explanation) == set(FIELDS.histories)
    for name, weights in explanation.items():
        assert weights.shape == (int(batch.histories[name].offsets[-1]),)
        if model.config.softmax:
            for start, stop in zip(batch.histories[name].offsets.tolist(), batch.histories[name].offsets.tolist()[1:]):
                if stop > start:
                    assert weights[start:stop].sum().item() == pytest.approx(1, rel=1e-4)
    one = shared(4, 5)
    for name, weights in model.explain(one).items():
        assert weights.shape == (4, 5)
        again = model.explain(repeated(one))[name]
        torch.testing.assert_close(weights.flatten(), again, rtol=1e-4, atol=1e-5)


def test_columns_that_no_candidate_has_enter_the_keys_only() -> None:
    fields = Fields((Field("user", "id", 9, side="user"), ITEM), {"seen": (RATING, GAP, ITEM)})
    model = build({"name": "din", "embedding_dim": 4}, fields)
    assert isinstance(model, DIN)
    assert model.queries.query_columns == {"seen": ["item"]}
    assert model.queries.key_columns == {"seen": ["item", "rating", "time_gap"]}
    assert (model.units[0].first.query, model.units[0].first.key) == (4, 12)
    assert model.top.layers[0].linear.weight.shape[1] == 4 + 4 + 12


def test_fields_of_different_widths() -> None:
    item = Field("item", "id", 60, dim=6, side="item")
    fields = Fields(
        (Field("user", "id", 9, dim=3, side="user"), item), {"seen": (Field("rating", "id", 8, dim=2), item)}
    )
    batch = ragged(5, fields=fields)
    assert build({"name": "din"}, fields)(batch).shape == (5,)


def test_a_schema_that_din_cannot_use_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="din reads a history, and the schema has none"):
        build({"name": "din"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError) as caught:
        build({"name": "din"}, Fields((user, ITEM), {"a": (RATING,), "b": (ITEM,), "c": (RATING, GAP)}))
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["histories.a.features", "histories.c.features"]
    assert "add the item" in str(caught.value)


def test_one_event_by_hand() -> None:
    """Weights chosen so that the attention is the product of query and key."""
    item = Field("item", "id", 4, dim=1, side="item")
    model = build(
        {"name": "din", "attention": [1], "mlp": [1], "batch_norm": False}, Fields((item,), {"seen": (item,)})
    )
    assert isinstance(model, DIN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.table("item").copy_(torch.tensor([[0.0], [0.0], [2.0], [3.0]]))
        model.units[0].first.weight_m.fill_(1)
        model.units[0].rest.last.weight.fill_(1)
        model.top.layers[0].linear.weight.copy_(torch.tensor([[0.0, 1.0]]))
        model.top.last.weight.fill_(1)
    ids = torch.tensor([3, 2, 2], dtype=torch.int32)
    batch = Batch.single(
        2, {"item": torch.tensor([2, 3], dtype=torch.int32)}, {"seen": HistoryBatch({"item": ids}, offsets([2, 1]))}
    )
    # row 0: candidate 2, past 3 and 2: (2*3)*3 + (2*2)*2; row 1: candidate 3, past 2: (3*2)*2
    assert model(batch).tolist() == [26.0, 12.0]
    assert model.explain(batch)["seen"].tolist() == [6.0, 4.0, 6.0]
