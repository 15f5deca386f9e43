from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor

from longrec.data import synthetic
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.dstn import DSTN, LARGEST, SetFusion
from longrec.nn.segments import Segments
from longrec.testing.batches import FIELDS, ITEM, grouped, offsets, pick, ragged, repeated, shared, values, with_feature
from longrec.testing.case import Case

FUSIONS = ["interactive", "self", "pooling"]


def dstn(fusion: str, attention: int = 8) -> DSTN:
    model = Case("dstn", {"fusion": fusion, "attention": attention}).lively()
    assert isinstance(model, DSTN)
    return model


def vectors(model: DSTN, batch: Batch) -> list[Tensor]:
    """The vector of every set, as the MLP gets it."""
    x_BX, sets = model._gather(batch, model.embed(batch))
    if not len(model.fusions):
        return [segments.pool(k_UK, "sum") for k_UK, segments in sets]
    return [fusion(x_BX, k_UK, segments) for fusion, (k_UK, segments) in zip(model.fusions, sets, strict=True)]


def kept(batch: Batch, keep: dict[str, list[int]]) -> Batch:
    """The batch with these positions of its histories alone."""
    histories = {}
    for name, events in batch.histories.items():
        bounds = events.offsets.tolist()
        lengths = [sum(a <= at < b for at in keep[name]) for a, b in zip(bounds, bounds[1:])]
        columns = {column: pick(values, keep[name]) for column, values in events.columns.items()}
        histories[name] = HistoryBatch(columns, offsets(lengths))
    return replace(batch, histories=histories)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_equations_event_by_event(fusion: str) -> None:
    """The whole model again as loops over rows and events."""
    model, batch = dstn(fusion), ragged(9)
    embedded = model.embeddings(batch)
    logits = []
    for row in range(9):
        x = torch.cat([vectors[row] for vectors in embedded.features.values()])
        inputs = [x]
        for index, (history, columns) in enumerate(embedded.histories.items()):
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            events = [torch.cat([vectors[at] for vectors in columns.values()]) for at in range(start, stop)]
            u = torch.zeros(sum(vectors.shape[1] for vectors in columns.values()))
            if events and fusion == "pooling":
                u = torch.stack(events).sum(0)
            elif events:
                unit = cast(SetFusion, model.fusions[index])
                scores = []
                for event in events:
                    h = unit.of_event.weight @ event + unit.of_event.bias
                    if unit.of_target is not None:
                        h = h + unit.of_target.weight @ x
                    score = unit.score.weight[0] @ h.relu()
                    scores.append(score if unit.of_target is None else (score + unit.score.bias[0]).exp())
                a = torch.stack(scores)
                u = (a.softmax(0) if fusion == "self" else a) @ torch.stack(events)
            inputs.append(u)
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_empty_set_gives_a_zero_vector(fusion: str) -> None:
    model = dstn(fusion)
    for batch in (ragged(4, lengths=[0] * 4), shared(3, 0)):
        for u_BK in vectors(model, batch):
            assert u_BK.shape[0] == batch.size
            assert not u_BK.any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_sets_add_up_unless_normalized(fusion: str) -> None:
    """f(A and B) = f(A) + f(B) of disjoint sets; the softmax of the self form takes that away."""
    model, batch = dstn(fusion), ragged(9)
    total = {name: int(events.offsets[-1]) for name, events in batch.histories.items()}
    one = vectors(model, kept(batch, {name: list(range(0, count, 2)) for name, count in total.items()}))
    two = vectors(model, kept(batch, {name: list(range(1, count, 2)) for name, count in total.items()}))
    for whole, a, b in zip(vectors(model, batch), one, two, strict=True):
        if fusion == "self":
            assert (whole - a - b).abs().max() > 0.1
        else:
            torch.testing.assert_close(whole, a + b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_a_set_does_not_matter(fusion: str) -> None:
    model, batch = dstn(fusion), ragged(9)
    turned = {}
    for name, events in batch.histories.items():
        bounds = events.offsets.tolist()
        turned[name] = [at for a, b in zip(bounds, bounds[1:]) for at in reversed(range(a, b))]
    histories = {
        name: HistoryBatch({c: pick(v, turned[name]) for c, v in events.columns.items()}, events.offsets)
        for name, events in batch.histories.items()
    }
    for a, b in zip(vectors(model, batch), vectors(model, replace(batch, histories=histories)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_target_moves_the_interactive_form_alone(fusion: str) -> None:
    model, batch = dstn(fusion), ragged(9)
    other = with_feature(batch, "item", values(ITEM, 9, torch.Generator().manual_seed(7)))
    for before, after in zip(vectors(model, batch), vectors(model, other), strict=True):
        if fusion == "interactive":
            assert (before - after).abs().max() > 1e-3
        else:
            assert torch.equal(before, after)


def test_a_large_score_is_cut_before_it_drowns_the_rest() -> None:
    unit = SetFusion(1, 1, 1)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.fill_(1)
    segments = Segments(offsets([2]), 1, 2)
    w_N = unit.weights(torch.tensor([[1.0]]), torch.tensor([[1e6], [-3.0]]), segments)
    # 1e6 + 1 + 1 + 1 is cut; -3 + 1 + 1 is below zero, which leaves the last bias
    torch.testing.assert_close(w_N, torch.tensor([LARGEST, 1.0]).exp())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_explains_a_score_by_its_weights(fusion: str) -> None:
    model, batch, one = dstn(fusion), ragged(9), shared(4, 5)
    explanation = model.explain(batch)
    assert set(explanation) == (set() if fusion == "pooling" else set(FIELDS.histories))
    for name, w_N in explanation.items():
        bounds = batch.histories[name].offsets.tolist()
        assert w_N.shape == (bounds[-1],)
        sums = torch.stack([w_N[a:b].sum() for a, b in zip(bounds, bounds[1:]) if b > a])
        assert bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4)) == (fusion == "self")
    for name, w_BT in model.explain(one).items():
        assert w_BT.shape == (4, 5)
        torch.testing.assert_close(w_BT.flatten(), model.explain(repeated(one))[name], rtol=1e-4, atol=1e-4)
    together = grouped([2, 0, 2, 1])
    for name, w_N in model.explain(together).items():
        torch.testing.assert_close(w_N, model.explain(together.ungroup())[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS[:2])
def test_events_enter_the_attention_once_per_request(fusion: str) -> None:
    model, rows = dstn(fusion), []
    unit = cast(SetFusion, model.fusions[0]).of_event
    unit.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model(shared(6, 5))
    batch = grouped([2, 0, 2, 1, 1])
    model(batch)
    assert rows == [5, int(batch.histories["seen"].offsets[-1])]


def test_a_schema_without_a_history_is_refused() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="dstn reads a history, and the schema has none"):
        build({"name": "dstn"}, Fields((user, ITEM), {}))


SMALL = {"name": "dstn", "attention": 16, "mlp": [32]}


def test_the_set_of_clicks_reveals_an_interest_and_fields_alone_do_not(tmp_path: Path) -> None:
    dataset = synthetic.generate_dataset("one_interest", users=800)
    assert solves(dataset, SMALL, tmp_path, "dstn", epochs=4)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "lr"}, tmp_path, "lr", epochs=1))
    assert abs(actual - 0.5) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_solves_one_interest(fusion: str, tmp_path: Path) -> None:
    assert solves(synthetic.generate_dataset("one_interest"), {"name": "dstn", "fusion": fusion}, tmp_path)
