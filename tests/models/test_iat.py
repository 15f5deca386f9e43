"""The IAT source: equations by hand, attention between rows, and one causal pass against each impression alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.base import ContextInstances, UserOrder
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import build
from longrec.models.iat import IAT
from longrec.nn.quantize import ResidualQuantizer
from longrec.testing.batches import FEW, FIELDS, ragged, shared, take
from longrec.testing.case import Case
from longrec.testing.expect import expect_close

USER: dict[str, Any] = {"width": 8, "base": {"name": "fm", "embedding_dim": 4}}
LABELS = {**USER, "labels": True}
SLOTS = {**LABELS, "slots": 2, "sit_width": 12, "direct": 0.3}
CODES = {**USER, "slots": 2, "codes": {"levels": 2, "size": 16}}


def iat(settings: dict[str, Any], fields: Fields = FEW) -> IAT:
    model = Case("iat", settings).lively(fields)
    assert isinstance(model, IAT)
    return model


def rows(count: int = 40, seed: int = 0) -> Batch:
    return ragged(count, seed=seed, fields=FEW)


def earlier(batch: Batch) -> list[list[int]]:
    """For each row the earlier rows of its user."""
    assert batch.users is not None
    assert batch.timestamps is not None
    user, timestamp = batch.users, batch.timestamps
    return [((user == user[i]) & (timestamp < timestamp[i])).nonzero().squeeze(1).tolist() for i in range(batch.size)]


def test_the_equations_of_temporal_order() -> None:
    model, batch = iat({**USER, "order": "temporal"}), rows()
    h = model.base.represent(batch)
    w1, b1 = model.compressor.linear.weight, model.compressor.linear.bias
    first, last = model.decoder.layers[0].linear, model.decoder.last
    e = F.gelu(h @ w1.t() + b1)
    expect_close(model.encode(batch), e)
    back = F.gelu(e @ first.weight.t() + first.bias) @ last.weight.t() + last.bias
    expect_close(model(batch), model.base.head(back)[:, 0])
    assert model.user_order is None


@pytest.mark.parametrize("settings", [USER, LABELS, SLOTS], ids=["plain", "labels", "slots"])
def test_3_causality_of_sit(settings: dict[str, Any]) -> None:
    """d logit_i / d h_j = 0 for every row of another user, every later row and every tie but the row itself."""
    model, batch = iat(settings), rows()
    kept: list[Tensor] = []

    def keep(module: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0].detach().requires_grad_())
        return (kept[-1],)

    handle = model.compressor.register_forward_pre_hook(keep)
    logit = model(batch)
    handle.remove()
    looked = 0
    for i, before in enumerate(earlier(batch)):
        (grad,) = torch.autograd.grad(logit[i], kept[0], retain_graph=True)
        assert grad.abs().sum(1).nonzero().squeeze(1).tolist() == sorted([*before, i])
        looked += len(before)
    assert looked > 50
    assert batch.timestamps is not None
    assert len(batch.timestamps.unique()) < batch.size, "there are ties"


@pytest.mark.parametrize("settings", [USER, LABELS, CODES], ids=["plain", "labels", "codes"])
def test_7_pre_sit_storage(settings: dict[str, Any]) -> None:
    """A token does not depend on the user's other rows: given to others, alone, as candidates, in any order."""
    model, batch = iat(settings), rows()
    e = model.encode(batch)
    assert batch.users is not None
    assert batch.label is not None
    expect_close(model.encode(replace(batch, users=batch.users.flip(0), label=1 - batch.label)), e)
    expect_close(model.encode(replace(batch, users=None, timestamps=None, label=None)), e)
    order = torch.randperm(40).tolist()
    expect_close(model.encode(take(batch, order)), e[order])
    expect_close(model.encode(take(batch, [7])), e[[7]])
    assert (model(batch) - model(replace(batch, users=batch.users.flip(0)))).abs().max() > 1e-3, "but a logit does"


def test_7_the_ablation_that_stores_after_sit_does_depend_on_history() -> None:
    model, batch = iat({**USER, "stored": "after"}), rows()
    assert model.encodes_in_context
    assert batch.users is not None
    moved = (model.encode(batch) - model.encode(replace(batch, users=batch.users.flip(0)))).abs().amax(1)
    assert moved.max() > 1e-3
    alone = model.encode(replace(batch, users=None))
    first = [i for i, before in enumerate(earlier(batch)) if not before]
    expect_close(alone[first], model.encode(batch)[first])
    assert not iat(USER).encodes_in_context


@pytest.mark.parametrize("settings", [{**USER, "order": "temporal"}, USER, LABELS, SLOTS, CODES], ids=str)
def test_8_one_causal_pass_equals_each_impression_by_itself(settings: dict[str, Any]) -> None:
    """Logits and losses of a batch, against one batch an impression that holds it and its own earlier rows only."""
    model, batch = iat(settings), rows()
    together, losses = model(batch), []
    for i, before in enumerate(earlier(batch)):
        one = take(batch, [*before, i])
        one = replace(one, loss_mask=torch.tensor([False] * len(before) + [True]))
        expect_close(model(one)[-1:], together[[i]])
        losses.append(model.loss(one))
    torch.testing.assert_close(torch.stack(losses).mean(), model.loss(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{**USER, "order": "temporal"}, USER, LABELS, SLOTS, CODES], ids=str)
def test_8_stream_equals_batch(settings: dict[str, Any]) -> None:
    """Earlier rows read from a store give the same logits and losses as earlier rows of the batch."""
    model, batch = iat(settings), rows()
    context = context_of(model, batch)
    expect_close(model.logits_with_context(batch, context), model(batch))
    torch.testing.assert_close(model.loss_with_context(batch, context), model.loss(batch), rtol=0, atol=1e-5)


def context_of(model: IAT, batch: Batch) -> ContextInstances:
    """Return the context that a store of this batch's tokens would return."""
    assert batch.label is not None
    assert batch.timestamps is not None
    assert batch.label_time is not None
    before = earlier(batch)
    flat = torch.tensor(sum(before, []))
    offsets = torch.tensor([0, *map(len, before)]).cumsum(0)
    labels = batch.label[flat].long() + 1
    return ContextInstances(
        model.encode(batch)[flat].detach(), offsets, batch.timestamps[flat], labels, batch.label_time[flat]
    )


def test_labels_as_available_need_no_label_times() -> None:
    """If all labels were available to the next row of the user, the labels alone suffice."""
    model, batch = iat(LABELS), rows()
    batch = replace(batch, label_time=batch.timestamps)
    context = context_of(model, batch)
    expect_close(model.logits_with_context(batch, replace(context, label_times=None)), model(batch))
    unknown = replace(context, labels=torch.full_like(context.labels, 3), label_times=None)
    assert (model.logits_with_context(batch, unknown) - model(batch)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="the context has none"):
        model.logits_with_context(batch, replace(context, labels=None))


def test_6_no_gradient_enters_stored_tokens() -> None:
    model, batch = iat(LABELS).train(), rows()
    context = context_of(model, batch)
    vectors = context.vectors.clone().requires_grad_()
    model.loss_with_context(batch, replace(context, vectors=vectors)).backward()
    assert vectors.grad is None
    assert torch.equal(vectors.detach(), context.vectors)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_row_reads_labels_when_available_and_never_its_own() -> None:
    model, batch = iat(LABELS), rows()
    assert batch.label is not None
    assert batch.label_time is not None
    assert batch.timestamps is not None
    assert batch.users is not None
    before, changes = model(batch), 0
    for j in range(batch.size):
        label = batch.label.clone()
        label[j] = 1 - label[j]
        moved = (model(replace(batch, label=label)) != before).nonzero().squeeze(1)
        assert all(batch.users[moved] == batch.users[j])
        assert all(batch.timestamps[moved] > torch.maximum(batch.label_time[j], batch.timestamps[j]))
        changes += len(moved)
    assert changes > 20
    # A label that is missing is a label of its own; without labels at all every one counts as not known yet.
    assert (model(replace(batch, label=torch.full((40,), torch.nan))) - before).abs().max() > 1e-3
    never = replace(batch, label_time=torch.full_like(batch.label_time, 2**62))
    expect_close(model(replace(batch, label=None)), model(never))


def test_without_labels_nothing_depends_on_labels() -> None:
    model, batch = iat(USER), rows()
    assert batch.label is not None
    assert torch.equal(model(replace(batch, label=1 - batch.label)), model(batch))


def test_rows_of_nobody_see_themselves_alone() -> None:
    for settings in (USER, LABELS, SLOTS):
        model, batch = iat(settings), rows(12)
        strangers = replace(batch, users=torch.arange(12))
        expect_close(model(replace(batch, users=None, timestamps=None, label_time=None)), model(strangers))
        assert model(shared(4, 3, fields=FEW)).shape == (4,)


def test_loss_counts_the_rows_that_count() -> None:
    model, batch = iat({**USER, "direct": 0.5}), rows()
    counts = torch.arange(40) % 3 == 0
    masked = replace(batch, loss_mask=counts)
    assert batch.label is not None
    direct = model._decode(model.encode(batch))
    expected = F.binary_cross_entropy_with_logits(model(batch)[counts], batch.label[counts])
    expected = expected + 0.5 * F.binary_cross_entropy_with_logits(direct[counts], batch.label[counts])
    expect_close(model.loss(masked), expected)
    # The labels of rows that do not count may be missing.
    expect_close(model.loss(replace(masked, label=torch.where(counts, batch.label, torch.nan))), expected)


def test_codes_and_codebooks_make_the_tokens() -> None:
    model, batch = iat(CODES), rows()
    codes, books = model.codes(batch), model.codebooks()
    assert books is not None
    assert codes.shape == (40, 2 * 2)
    assert books.shape == (2, 2, 16, 8)
    by_hand = torch.cat([sum(books[s, m][codes[:, 2 * s + m].long()] for m in (0, 1)) for s in (0, 1)], 1)
    expect_close(model.encode(batch), by_hand)
    assert len(model.encode(batch).unique(dim=0)) > 20
    assert model.width == 16


def test_training_moves_codebooks_and_its_loss_holds_the_commitment() -> None:
    model, batch = iat(CODES).train(), rows()
    before = model.quantizer.codebooks.clone()
    loss = model.loss(batch)
    assert not torch.equal(before, model.quantizer.codebooks)
    model.eval()
    assert loss > bce_loss(model(batch), batch) + 1e-4


def test_without_codes_no_quantizer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the quantizer was called")

    monkeypatch.setattr(ResidualQuantizer, "forward", never)
    monkeypatch.setattr(ResidualQuantizer, "codes", never)
    model = iat(USER)
    assert model.encode(rows()).isfinite().all()
    assert model.codebooks() is None
    with pytest.raises(NotImplementedError, match="IAT has no codes"):
        model.codes(rows())
    with pytest.raises(AssertionError):
        build({"name": "iat", **CODES}, FEW).encode(rows())


def test_user_order_reaches_the_loader() -> None:
    model = build({"name": "iat", **USER, "rows_per_user": 70, "context": 9, "passes": "two"}, FEW)
    assert model.user_order == UserOrder(70, 9, True)
    assert build({"name": "iat", **USER}, FEW).user_order == UserOrder(256, 0, False)


def test_it_reads_histories_when_its_base_does() -> None:
    assert build({"name": "iat", "base": {"name": "din"}}, FIELDS).reads_history
    assert not build({"name": "iat"}, FIELDS).reads_history


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base": {"name": "deepfmm"}}, r"model\.base: .*deepfmm.*did you mean 'deepfm'"),
        ({"base": {"name": "deepfm", "mpl": [8]}}, r"model\.base: mpl: unknown key; did you mean 'mlp'"),
        ({"base": {"mlp": [8]}}, r"model\.base: name: is required"),
        ({"base": {"name": "iat"}}, r"model\.base\.name: iat cannot be a base"),
        ({"codes": {"size": 300}}, r"model\.codes\.size: input should be less than or equal to 256"),
        ({"codes": {"level": 2}}, r"model\.codes\.level: unknown key; did you mean 'levels'"),
        ({"heads": 3}, "heads: 3 heads do not divide a width of 64"),
        ({"order": "temporal", "labels": True, "direct": 0.1}, "labels: needs order: user; direct: needs order: user"),
        ({"stored": "after", "codes": True}, "stored: codes are of the token before SIT"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build({"name": "iat", **settings}, FIELDS)


def test_the_config_holds_every_default_of_its_base() -> None:
    model = build({"name": "iat", "base": {"name": "fm", "embedding_dim": 4}, "codes": True}, FIELDS)
    assert model.config.base == {"name": "fm", "embedding_dim": 4, "init_std": 0.01}
    assert model.config.codes.levels == 3
    assert build({"name": "iat", "codes": False}, FIELDS).config.codes is None


def test_user_order_keeps_what_a_later_row_needs_and_temporal_order_does_not() -> None:
    """The label of a row is a hidden bit of the row before: nothing in the row itself tells it."""
    fields = Fields((Field("bit", "id", 4), Field("noise", "id", 8)), {})
    random = torch.Generator().manual_seed(0)

    def build_batch(users: int = 24, length: int = 8) -> Batch:
        n = users * length
        bit = torch.randint(2, 4, (n,), generator=random, dtype=torch.int32)
        noise = torch.randint(2, 8, (n,), generator=random, dtype=torch.int32)
        timestamps = torch.arange(n) % length * 60_000
        label = (bit.roll(1) == 3).float()
        counts = timestamps > 0
        features = {"bit": bit, "noise": noise}
        return Batch.single(
            n, features, label=label, users=torch.arange(n) // length, timestamps=timestamps, loss_mask=counts
        )

    def error(order: str) -> float:
        torch.manual_seed(0)
        model = build({"name": "iat", "order": order, "width": 8, "layers": 1, "base": {"name": "lr"}}, fields)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for parameter in model.embedding_parameters():
            parameter.data.normal_(std=0.3, generator=random)
        for _ in range(100):
            loss = model.loss(build_batch())
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.embedding_parameters():
                parameter.grad = parameter.grad.to_dense()
            optimizer.step()
        return float(model.eval().loss(build_batch()).detach())

    assert error("user") < 0.3
    assert error("temporal") > 0.65
