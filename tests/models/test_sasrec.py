"""SASRec: its equations by hand, states of parts of a history, tied tables, a step, and its program."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from table_reads import record_reads
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.sasrec import SASRec
from longrec.testing.batches import ragged, take
from longrec.testing.programs import silence_exporter
from longrec.testing.target_batches import with_targets

ITEM, KIND = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item")
PLAIN = Fields((ITEM, KIND), {"seen": (ITEM, KIND)})
SMALL: dict[str, Any] = {"name": "sasrec", "embedding_dim": 6, "positions": 4}


def make(fields: Fields = PLAIN, **settings: Any) -> SASRec:
    torch.manual_seed(0)
    model = build({**SMALL, **settings}, fields)
    assert isinstance(model, SASRec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def by_hand(model: SASRec, ids: list[list[int]]) -> Tensor:
    """The states of one history of (item, kind), written as in the paper's notation, in one head."""

    def normalize(x: Tensor, norm: nn.Module) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * norm.weight + norm.bias  # type: ignore[operator]

    of = model.embeddings
    items, kinds = of.table("item"), of.table("kind")
    newest = len(ids) - 1
    x = torch.stack(
        [items[a] + kinds[b] + model.position_embedding[min(newest - t, 3)] for t, (a, b) in enumerate(ids)]
    )
    x = normalize(x, model.input_norm)
    for block in model.blocks:
        q, k, v = block.inner(normalize(x, block.norms[0])).split(6, 1)  # type: ignore[operator,index,union-attr]
        rows = [((k[: t + 1] @ q[t]) / math.sqrt(6)).softmax(0) @ v[: t + 1] for t in range(len(ids))]
        x = x + torch.stack(rows) @ block.outer.weight.t() + block.outer.bias  # type: ignore[operator,union-attr]
        h = F.gelu(block.first(normalize(x, block.norms[1])))  # type: ignore[operator,index]
        x = x + block.second(h)  # type: ignore[operator]
    return normalize(x, model.norm)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_equations(layers: int) -> None:
    model, batch = make(layers=layers), ragged(6, fields=PLAIN, lengths=[3, 0, 1, 7, 2, 5])
    columns = batch.histories["seen"].columns
    ids = torch.stack([columns["item"], columns["kind"]], 1)  # type: ignore[list-item]
    bounds = batch.histories["seen"].offsets.tolist()
    with torch.no_grad():
        states, users = model.states(batch), model.users(batch)
        for row, (first, stop) in enumerate(zip(bounds, bounds[1:])):
            if first == stop:
                assert not users[row].any()
                continue
            expected = by_hand(model, ids[first:stop].tolist())
            torch.testing.assert_close(states[first:stop], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(users[row, 0], expected[-1], rtol=1e-4, atol=1e-5)


def test_items_and_events_read_the_same_tables() -> None:
    model = make()
    columns = {"item": torch.tensor([5, 0, 1], dtype=torch.int32), "kind": torch.tensor([3, 3, 0], dtype=torch.int32)}
    items, kinds = model.embeddings.table("item"), model.embeddings.table("kind")
    torch.testing.assert_close(model.items(columns), items[[5, 0, 1]] + kinds[[3, 3, 0]])
    assert sum(table.numel() for table in model.embedding_parameters()) == (60 + 9) * 6


def test_the_first_weights() -> None:
    torch.manual_seed(0)
    model = build({"name": "sasrec"}, Fields((replace(ITEM, rows=3000),), {"seen": (replace(ITEM, rows=3000),)}))
    assert isinstance(model, SASRec)
    (table,) = model.embedding_parameters()
    assert not table[:2].any()
    assert float(table[2:].detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(model.position_embedding.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.blocks[0].inner.weight.detach().std()) == pytest.approx(64**-0.5 / 2, rel=0.05)  # type: ignore[union-attr,operator]


def test_a_later_event_changes_no_earlier_state() -> None:
    """In both directions: the gradient of a state is zero for later events, and not for earlier ones."""
    model, batch = make(layers=2), ragged(3, fields=PLAIN, lengths=[4, 2, 3])
    embedded = model.embeddings(batch)
    x_ND = embedded.histories["seen"]["item"].detach().requires_grad_()
    histories = {"seen": {**embedded.histories["seen"], "item": x_ND}}
    states = model.encode(batch, replace(embedded, histories=histories))
    for at, first in enumerate([0, 0, 0, 0, 4, 4, 6, 6, 6]):
        (grad,) = torch.autograd.grad((states[at] * torch.randn(6)).sum(), x_ND, retain_graph=True)
        moved = (grad.abs().sum(1) > 1e-8).tolist()
        assert moved == [first <= other <= at for other in range(9)]


def test_positions_count_from_the_newest_event() -> None:
    """An older event moves the state by its value alone: the positions of the others stay."""
    model = make(positions=2)
    one = ragged(1, fields=PLAIN, lengths=[3])
    events = one.histories["seen"]
    swapped = {name: column[[1, 0, 2]] for name, column in events.columns.items()}  # type: ignore[index]
    other = replace(one, histories={"seen": HistoryBatch(swapped, events.offsets)})
    with torch.no_grad():  # both older events have the last position, and attention has no order of its own
        torch.testing.assert_close(model.users(one), model.users(other), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(make(positions=3).users(one), make(positions=3).users(other), atol=1e-4)


def test_the_loss_of_positions_and_of_requests() -> None:
    """Targets of the last positions only are those of requests."""
    model = make(dropout=0.0)
    batch = with_targets(model.sampling, 5, fields=PLAIN, per_position=False)
    assert batch.targets is not None
    filled = (batch.histories["seen"].offsets.diff() > 0).nonzero().squeeze(1)
    of_requests = replace(batch.targets, state=filled, item=batch.targets.item[filled])
    last = batch.histories["seen"].offsets[1:][filled] - 1
    of_positions = replace(of_requests, state=last, per_position=True)
    losses = [model.loss(replace(batch, targets=targets)) for targets in (of_requests, of_positions)]
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="targets"):
        model.loss(replace(batch, targets=None))


def test_one_lookup_per_table_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reads = make().train(), record_reads(monkeypatch)
    batch = with_targets(model.sampling, 40, fields=PLAIN)
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    assert batch.targets is not None
    count = int(batch.histories["seen"].offsets[-1]) + len(batch.targets.rows)
    tables = list(model.embedding_parameters())
    assert reads == {id(table): [count] for table in tables}
    for table in tables:
        assert table.grad is not None
        assert table.grad._nnz() == len(torch.unique(table.grad._indices())) < count  # summed by row


def test_a_step_lowers_the_loss_of_its_batch() -> None:
    model = make().train()
    batch = with_targets(model.sampling, 64, fields=PLAIN)
    before = model.eval().loss(batch)
    model.train().loss(batch).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.add_(parameter.grad.to_dense(), alpha=-0.01)
    assert model.eval().loss(batch) < before


def test_a_history_without_the_item_is_refused() -> None:
    with pytest.raises(ConfigError, match="histories.seen.features: sasrec needs an id"):
        build(SMALL, Fields((ITEM,), {"seen": (Field("rating", "id", 8),)}))
    with pytest.raises(ConfigError, match="reads a history"):
        build(SMALL, Fields((ITEM,), {}))
    with pytest.raises(ConfigError, match="no multiple of heads"):
        build({**SMALL, "heads": 4}, PLAIN)


class Program(nn.Module):
    """The vector of one user as a function of the ids of its events."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, item: Tensor, kind: Tensor) -> Tensor:
        events = HistoryBatch({"item": item, "kind": kind}, torch.arange(2) * item.shape[0])
        return self.model.users(Batch(Layout.shared(1), {}, {}, {"seen": events}))


@pytest.mark.filterwarnings("ignore:# The axis name. T will not be used:UserWarning")
def test_the_program_of_the_vector_of_a_user(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make(layers=2, heads=2)
    example = tuple(torch.randint(2, 9, (7,), dtype=torch.int32) for _ in range(2))
    length = torch.export.Dim("T")
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            Program(model).eval(), example, dynamo=True, dynamic_shapes=({0: length},) * 2, verbose=False
        )
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for events in (0, 1, 2, 7, 60):
        batch = ragged(1, fields=PLAIN, lengths=[events], seed=events)
        columns = batch.histories["seen"].columns
        feed = [np.asarray(columns[name]) for name in ("item", "kind")]
        (actual,) = session.run(None, dict(zip([entry.name for entry in session.get_inputs()], feed)))
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(actual), model.users(batch), rtol=1e-4, atol=1e-5)


def test_rows_are_as_one_by_one() -> None:
    model, batch = make(layers=2, heads=3), ragged(40, longest=30, fields=PLAIN)
    with torch.no_grad():
        together = model.users(batch)
        alone = torch.cat([model.users(take(batch, [row])) for row in range(40)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
