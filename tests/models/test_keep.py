from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.multi_task import masked_bce_loss
from longrec.models.core.registry import build
from longrec.models.keep import KEEP
from longrec.testing.batches import FIELDS, GAP, ITEM, RATING, pick, ragged, shared, values, with_feature, with_history

SETTINGS: list[dict[str, Any]] = [{}, *KEEP.variants]
NAN = float("nan")


def keep(settings: dict[str, Any] | None = None, fields: Fields = FIELDS) -> KEEP:
    """An extractor in evaluation whose every parameter was moved from its start."""
    torch.manual_seed(0)
    model = build({"name": "keep", **(settings or {})}, fields)
    assert isinstance(model, KEEP)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.train()
    model(ragged(64, fields=fields))
    return model.eval()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_row_by_row(settings: dict[str, Any]) -> None:
    model, batch = keep(settings), ragged(6)
    embedded = model.embeddings(batch)
    for row in range(6):
        of = {table: [embedded.features[f.name][row] for f in FIELDS.features if f.side == table]
              for table in ("user", "item", "context")}  # fmt: skip
        pooled, attended = [], []
        for (history, columns), unit in zip(FIELDS.histories.items(), model.units, strict=True):
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            events = {field.name: embedded.histories[history][field.name][start:stop] for field in columns}
            pooled += [events[field.name].sum(0) / max(stop - start, 1) for field in columns]
            names = [field.name for field in FIELDS.target_columns(history)]
            q = torch.cat([embedded.features[name][row] for name in names])
            order = [*names, *(field.name for field in columns if field.name not in names)]
            s = torch.zeros(unit.first.key)
            scores, keys = [], []
            for at in range(stop - start):
                k = torch.cat([events[name][at] for name in order])
                h = unit.first.weight_q @ q + unit.first.weight_k @ k + unit.first.bias
                h = (h + unit.first.weight_m @ (q * k[: len(q)])).relu()
                scores.append(unit.rest(h.unsqueeze(0)).squeeze())
                keys.append(k)
            if keys:
                a = torch.stack(scores)
                s = (a.softmax(0) if model.config.softmax else a) @ torch.stack(keys)
            attended.append(s)
        k_u = model.user(torch.cat([*of["user"], *pooled]).unsqueeze(0))
        k_v = model.item(torch.cat(of["item"]).unsqueeze(0))
        k_uv = model.both(torch.cat([k_u[0], k_v[0], *attended, *of["context"]]).unsqueeze(0))
        actual = model.encode(batch)[row]
        torch.testing.assert_close(actual, torch.cat([k_u, k_v, k_uv], 1)[0], rtol=1e-4, atol=1e-5)
        logits = model.heads(k_uv if model.experts is None else model.experts(k_uv))
        torch.testing.assert_close(model(batch)[row], logits[0, 0], rtol=1e-4, atol=1e-5)
    assert model.widths == (k_u.shape[1], k_v.shape[1], k_uv.shape[1])
    assert model.width == sum(model.widths)


def test_each_side_reads_its_own_fields_only() -> None:
    """So that the knowledge of a user can be kept before an item is at hand, and the other way round."""
    model, batch = keep(), ragged(30)
    user, item = model.user_knowledge(batch), model.item_knowledge(batch)
    generator = torch.Generator().manual_seed(5)
    for field in FIELDS.features:
        changed = with_feature(batch, field.name, values(field, 30, generator))
        assert torch.equal(model.user_knowledge(changed), user) == (field.side != "user"), field.name
        assert torch.equal(model.item_knowledge(changed), item) == (field.side != "item"), field.name
    columns = batch.histories["seen"].columns
    other = pick(columns["rating"], list(reversed(range(len(columns["rating"])))))
    changed = with_history(batch, "seen", {"rating": other})
    assert not torch.equal(model.user_knowledge(changed), user)
    assert torch.equal(model.item_knowledge(changed), item)


def test_one_user_with_many_candidates_is_encoded_once() -> None:
    user = keep().user_knowledge(shared(5, 4))
    assert user.shape[0] == 5
    torch.testing.assert_close(user, user[:1].expand(5, -1), rtol=1e-6, atol=1e-6)


def bce(logits: Tensor, labels: list[float]) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.tensor(labels, dtype=torch.float32))


def test_11_label_masks() -> None:
    """A label that is missing, or was not known in time, counts in no loss: neither as a yes nor as a no."""
    model = keep({"tasks": {"buy": 0.5, "like": 2.0}, "label_weight": 3.0}).train()
    assert model.targets == ("buy", "like")
    batch = replace(ragged(4), label=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    buy, like = torch.tensor([1.0, NAN, 0.0, NAN]), torch.tensor([NAN, NAN, NAN, NAN])
    batch = replace(batch, task_labels={"buy": buy, "like": like})
    model.eval()
    logits = model.logits(batch)
    expected = 3 * bce(logits[:, 0], [1, 0, 1, 0]) + 0.5 * bce(logits[[0, 2], 1], [1, 0])
    torch.testing.assert_close(model.loss(batch), expected)
    model.loss(batch).backward()
    grad = model.heads.weight.grad
    assert grad is not None
    assert grad[1].abs().sum() > 0
    assert torch.equal(grad[2], torch.zeros_like(grad[2]))
    counted = replace(batch, loss_mask=torch.tensor([True, True, False, False]))
    expected = 3 * bce(logits[:2, 0], [1, 0]) + 0.5 * bce(logits[[0], 1], [1])
    torch.testing.assert_close(model.loss(counted), expected)


def test_a_batch_without_a_target_is_refused() -> None:
    model = keep({"tasks": {"buy": 1.0}})
    with pytest.raises(ValueError, match="carries no target 'buy'"):
        model.loss(ragged(4))
    with pytest.raises(ValueError, match="carries no target 'buy'"):
        masked_bce_loss(torch.zeros(4), Batch.single(4, {}), "buy")


def test_more_labels_make_no_other_main_logit() -> None:
    """Every task has a head of its own over the shared last hidden layer."""
    model, batch = keep({"tasks": {"buy": 1.0}}), ragged(5)
    assert torch.equal(model(batch), model.logits(batch)[:, 0])
    assert model.logits(batch).shape == (5, 2)


def test_experts_stand_between_the_shared_layer_and_the_labels() -> None:
    batch = ragged(5)
    for sharing in ("mmoe", "ple"):
        model = keep({"sharing": sharing, "experts": 3, "expert": [7], "tasks": {"bought": 1.0}})
        both = model.encode(batch)[:, -model.widths[2] :]
        assert model.experts is not None
        h_BKH = model.experts(both)
        assert h_BKH.shape == (5, 2, 7)
        torch.testing.assert_close(model.logits(batch), model.heads(h_BKH))
        torch.testing.assert_close(model(batch), model.logits(batch)[:, 0])


def test_a_schema_without_two_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="a feature of the item, and a feature of the user or a history"):
        build({"name": "keep"}, Fields((Field("user", "id", 9, side="user"),), {}))
    with pytest.raises(ConfigError, match="keep extracts knowledge of users and of items"):
        build({"name": "keep"}, Fields((ITEM,), {}))


def test_a_history_that_shares_nothing_with_the_candidate_is_averaged() -> None:
    fields = Fields((ITEM,), {"seen": (RATING, GAP), "liked": (ITEM, GAP)})
    model = keep({}, fields)
    assert len(model.units) == 1
    batch = ragged(9, fields=fields)
    before = model(batch)
    ratings = batch.histories["seen"].columns["rating"]
    changed = with_history(batch, "seen", {"rating": pick(ratings, list(reversed(range(len(ratings)))))})
    assert not torch.equal(model(changed), before)
