"""BST: the tests that its section of the notes lists, by their letters, and the equations row by row."""

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
from longrec.models.bst import BST, _Path
from longrec.models.core.registry import build
from longrec.nn.transformer import EncoderLayer
from longrec.testing.batches import FEW, ITEM, RATING, grouped, pick, ragged, repeated, shared, take, with_history
from longrec.testing.case import Case

SETTINGS: list[dict[str, Any]] = [{"mlp": [16]}, *BST.variants]


def bst(settings: dict[str, Any], fields: Fields = FEW) -> BST:
    model = Case("bst", settings).lively(fields)
    assert isinstance(model, BST)
    return model


def path_of(model: BST) -> _Path:
    return cast(_Path, model.paths["path_seen"])


def block_of(block: EncoderLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 to 5 of one whole sequence, candidate last, and the weights ``[heads, T + 1, T + 1]``."""
    w_q, w_k, w_v = block.inner.weight.chunk(3)
    size = len(w_q) // block.heads
    heads, weights = [], []
    for head in range(block.heads):
        own = slice(head * size, (head + 1) * size)
        q, k, v = x @ w_q[own].t(), x @ w_k[own].t(), x @ w_v[own].t()
        weights.append((q @ k.t() / size**0.5).softmax(1))
        heads.append(weights[-1] @ v)
    s = torch.cat(heads, 1) @ block.outer.weight.t()
    first, second = cast(Any, block.norms[0]), cast(Any, block.norms[1])
    s = F.layer_norm(x + s, x.shape[1:], first.weight, first.bias)
    h = F.leaky_relu(s @ block.first.weight.t() + block.first.bias, 0.2)
    f = s + h @ block.second.weight.t() + block.second.bias
    return F.layer_norm(f, x.shape[1:], second.weight, second.bias), torch.stack(weights)


def as_written(model: BST, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits and the last block's attention of each candidate, by whole blocks over whole sequences."""
    path, embedded, logits, weights_of_rows = path_of(model), model.embeddings(batch), [], []
    seen = embedded.histories["seen"]
    events = torch.cat([seen["item"], seen["rating"]], 1)
    for row in range(batch.size):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        assert path.absent is not None
        x = torch.cat([events[start:stop], torch.cat([embedded.features["item"][row], path.absent]).unsqueeze(0)])
        if path.position_embedding is not None:
            index = torch.stack([path.position_embedding[back] for back in reversed(range(len(x)))])
            x = x + index if path.position == "add" else torch.cat([x, index], 1)
        for block in path.blocks:
            x, weights = block_of(cast(EncoderLayer, block), x)
        weights_of_rows.append(weights[:, -1, :-1].mean(0))
        kept = {"target": x[-1], "mean": x.mean(0), "sum": x.sum(0)}[path.pooling]
        inputs = [vectors[row] for vectors in embedded.features.values()]
        logits.append(model.top(torch.cat([*inputs, kept]).unsqueeze(0)).squeeze())
    return torch.stack(logits), weights_of_rows


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_the_shortcut_of_the_candidates_row_equals_the_full_block(settings: dict[str, Any]) -> None:
    """And so do means, sums, several blocks and every kind of position; on many rows as on few."""
    model, batch = bst(settings), ragged(120, fields=FEW, longest=12)
    expected, _ = as_written(model, batch)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
    few = take(batch, range(5))
    torch.testing.assert_close(model(few), expected[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_b_a_longer_neighbor_changes_nothing(settings: dict[str, Any]) -> None:
    """Padding is what a longer row of the bucket brings; the index counts from the candidate, so no length moves it."""
    model, batch = bst(settings), ragged(3, fields=FEW, lengths=[3, 4, 40])
    together = model(batch)
    torch.testing.assert_close(model(take(batch, [0])), together[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(take(batch, [1, 0])), together[[1, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "target"])
@pytest.mark.parametrize("position", ["time", "add", "concat"])
def test_c_without_an_index_the_order_of_the_events_is_not_seen(pooling: str, position: str) -> None:
    model = bst({"pooling": pooling, "position": position, "heads": 2, "mlp": [16]})
    batch = ragged(4, fields=FEW, lengths=[6] * 4)
    order = torch.cat([torch.randperm(6, generator=torch.Generator().manual_seed(row)) + 6 * row for row in range(4)])
    columns = batch.histories["seen"].columns
    turned = with_history(batch, "seen", {name: pick(column, order) for name, column in columns.items()})
    moved = (model(turned) - model(batch)).abs().max().item()
    assert moved < 1e-5 if position == "time" else moved > 1e-4


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_d_without_events_the_candidate_sees_itself(settings: dict[str, Any]) -> None:
    model = bst(settings)
    batch, one = ragged(4, fields=FEW, lengths=[0] * 4), shared(3, 0, fields=FEW)
    torch.testing.assert_close(model(batch), as_written(model, batch)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(one), as_written(model, repeated(one, FEW))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_score_by_the_attention_of_the_candidate(settings: dict[str, Any]) -> None:
    model, batch, one = bst(settings), ragged(9, fields=FEW), shared(4, 5, fields=FEW)
    torch.testing.assert_close(
        model.explain(batch)["seen"], torch.cat(as_written(model, batch)[1]), rtol=1e-4, atol=1e-5
    )
    expected = torch.stack(as_written(model, repeated(one, FEW))[1])
    torch.testing.assert_close(model.explain(one)["seen"], expected, rtol=1e-4, atol=1e-5)
    together = grouped([2, 0, 2, 1], fields=FEW)
    for history, w_N in model.explain(together).items():
        torch.testing.assert_close(w_N, model.explain(together.ungroup())[history], rtol=1e-4, atol=1e-5)


def test_a_request_makes_keys_and_values_of_its_history_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = bst({"mlp": [16]}), []
    project = EncoderLayer._project_events
    monkeypatch.setattr(
        EncoderLayer, "_project_events", lambda self, x_ND: rows.append(len(x_ND)) or project(self, x_ND)
    )
    model(shared(6, 50, fields=FEW))
    assert rows == [50, 6]
    batch = grouped([2, 0, 2, 1, 1], fields=FEW)
    model(batch)
    assert rows[2:] == [int(batch.histories["seen"].offsets[-1]), 5]


def test_heads_that_do_not_divide_the_width_are_rounded_up() -> None:
    item = Field("item", "id", 60, dim=5, side="item")
    fields = Fields((Field("user", "id", 9, side="user"), item), {"seen": (item, Field("rating", "id", 8, dim=2))})
    model = bst({"heads": 3, "mlp": [8]}, fields)
    block = cast(EncoderLayer, path_of(model).blocks[0])
    assert (block.inner.in_features, block.inner.out_features, block.outer.in_features) == (7, 27, 9)
    batch = ragged(5, fields=fields)
    torch.testing.assert_close(model(batch), as_written(model, batch)[0], rtol=1e-4, atol=1e-4)


def test_schemas_that_bst_cannot_use_are_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="bst reads a history, and the schema has none"):
        build({"name": "bst"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError) as caught:
        build({"name": "bst"}, Fields((user, ITEM), {"a": (RATING,), "b": (ITEM,), "c": (RATING,)}))
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["histories.a.features", "histories.c.features"]


SMALL = {"name": "bst", "heads": 2, "mlp": [32], "embedding_dim": 8, "dropout": 0.0, "init_std": 0.1}


def test_the_candidate_among_its_events_finds_an_interest_and_fields_alone_do_not(tmp_path: Path) -> None:
    dataset = generate_dataset("one_interest", users=500)
    assert solves(dataset, SMALL, tmp_path, "bst", epochs=6, lr=1e-2)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "lr"}, tmp_path, "lr", epochs=1))
    assert abs(actual - 0.5) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("position", "solved"), [("add", True), ("concat", True), ("time", False)])
def test_what_was_liked_last_is_learned_by_the_index_only(position: str, solved: bool, tmp_path: Path) -> None:
    dataset = generate_dataset("drifting_interest")
    assert solves(dataset, {**SMALL, "position": position}, tmp_path) == solved
