"""GRU4Rec: its states event by event, reset between users, one table, and the exact loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.gru4rec import GRU4Rec
from longrec.testing.batches import ragged, take
from longrec.testing.target_batches import with_targets

ITEM, KIND = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item")
PLAIN = Fields((ITEM, KIND), {"seen": (ITEM, KIND)})


def make(**settings: Any) -> GRU4Rec:
    torch.manual_seed(0)
    model = build({"name": "gru4rec", "embedding_dim": 6, **settings}, PLAIN)
    assert isinstance(model, GRU4Rec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def step(layer: Any, x: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU in the paper's notation: z updates, r resets."""
    (xz, xr, xn), (hz, hr, hn) = (layer.weight @ x + layer.bias).chunk(3), (layer.recurrent @ h).chunk(3)
    z, r = torch.sigmoid(xz + hz), torch.sigmoid(xr + hr)
    return (1 - z) * h + z * torch.tanh(xn + r * hn)


def test_batches_of_histories_equal_a_loop_over_sessions() -> None:
    """The state is zero at the first event of every history, and no other history changes it."""
    model, batch = make(layers=2), ragged(6, fields=PLAIN, lengths=[3, 0, 1, 7, 2, 5])
    columns, bounds = batch.histories["seen"].columns, batch.histories["seen"].offsets.tolist()
    items, kinds = model.embeddings.table("item"), model.embeddings.table("kind")
    with torch.no_grad():
        states, users = model.states(batch), model.users(batch)
        for row, (first, stop) in enumerate(zip(bounds, bounds[1:])):
            h = [torch.zeros(6), torch.zeros(6)]
            for at in range(first, stop):
                x = items[int(columns["item"][at])] + kinds[int(columns["kind"][at])]  # type: ignore[index]
                for number, layer in enumerate(model.layers):
                    x = h[number] = step(layer, x, h[number])
                torch.testing.assert_close(states[at], x, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(users[row, 0], h[1], rtol=1e-4, atol=1e-5)
        alone = torch.cat([model.users(take(batch, [row])) for row in range(6)])
    torch.testing.assert_close(users, alone, rtol=1e-4, atol=1e-5)


def test_the_input_and_the_output_share_one_table() -> None:
    model = make()
    assert [tuple(table.shape) for table in model.embedding_parameters()] == [(60, 6), (9, 6)]
    columns = {"item": torch.tensor([5, 1], dtype=torch.int32), "kind": torch.tensor([3, 0], dtype=torch.int32)}
    expected = model.embeddings.table("item")[[5, 1]] + model.embeddings.table("kind")[[3, 0]]
    torch.testing.assert_close(model.items(columns), expected)


def test_the_loss_with_all_items_sampled_equals_the_full_softmax() -> None:
    model, full = make(log_q=False), make(loss="cross_entropy")
    batch = with_targets(full.sampling, 20, fields=PLAIN)
    assert batch.targets is not None
    count = len(batch.targets.rows)
    sampled = replace(batch.targets, negatives=count, log_q=torch.zeros(count))
    losses = [model.loss(replace(batch, targets=sampled)), full.loss(batch)]
    torch.testing.assert_close(*losses)
    scores = full.states(batch) @ full.items(batch.candidates).t()
    expected = F.cross_entropy(scores.index_select(0, batch.targets.state), batch.targets.item)
    torch.testing.assert_close(losses[1], expected)
