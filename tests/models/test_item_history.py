"""Base of retrievers over an item history: several interests, what is read, and empty columns."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from longrec.features.batch import Batch, Jagged
from longrec.features.fields import Field, Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever, make_empty
from longrec.nn.embedding import Embedded
from longrec.testing.batches import FIELDS, ITEM, ragged
from longrec.testing.target_batches import catalog, with_targets

SMALL = Fields((Field("hour", "id", 27), ITEM), {"seen": (ITEM,)})


class TwoInterests(ItemHistoryRetriever):
    """The last event through two matrices."""

    interests = 2

    def __init__(self, config: ItemHistoryConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.first, self.second = nn.Linear(self.width, self.width), nn.Linear(self.width, self.width)

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Tensor:
        last_RD = self.take_last(batch, self.add_events(embedded))
        return torch.stack([self.first(last_RD), self.second(last_RD)], 1)


class Everything(ItemHistoryRetriever):
    """Everything there is to read, added up."""

    reads_requests = True
    item_kinds: ClassVar[tuple[str, ...]] = ("id", "multi_id", "numeric", "embedding")

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Tensor:
        last_RD = self.take_last(batch, self.add_events(embedded))
        return (last_RD + torch.stack(list(embedded.request.values())).sum(0)).unsqueeze(1)


def make(cls: type[ItemHistoryRetriever], fields: Fields, **settings: object) -> ItemHistoryRetriever:
    torch.manual_seed(0)
    return cls(ItemHistoryConfig(embedding_dim=6, init_std=1.0, **settings), fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_interest_alone_learns_a_target(cosine: bool) -> None:
    model = make(TwoInterests, SMALL, cosine=cosine, negatives=5)
    assert isinstance(model, TwoInterests)
    batch = with_targets(model.sampling, 9, fields=SMALL, per_position=False)
    assert batch.targets is not None
    with torch.no_grad():
        scores = model.users(batch) @ model.items(catalog(SMALL)).t()  # [R, 2, I]
        torch.testing.assert_close(scores.amax(1), model.score_catalog(batch, catalog(SMALL)))
    seen = set()
    for row in range(9):
        weight_T = torch.eye(9)[row]
        item = int(batch.targets.rows[batch.targets.item[row]])
        nearest = int(scores[row, :, item].argmax())
        seen.add(nearest)
        model.zero_grad()
        model.loss(replace(batch, targets=replace(batch.targets, weight=weight_T))).backward()  # type: ignore[no-untyped-call]
        moved = [bool(layer.bias.grad.abs().sum() > 0) for layer in (model.first, model.second)]  # type: ignore[union-attr]
        assert moved == [nearest == 0, nearest == 1]
    assert seen == {0, 1}


def test_what_a_subclass_reads() -> None:
    two, every = make(TwoInterests, FIELDS), make(Everything, FIELDS)
    assert [field.name for field in two.read_fields.features] == ["item", "genres", "actors"]
    assert every.read_fields.features == FIELDS.features
    assert not two.sampling.requests
    assert every.sampling.requests
    assert not make(TwoInterests, SMALL).sampling.requests
    assert list(every.read_fields.histories) == ["seen"]
    with torch.no_grad():
        batch = ragged(5, fields=FIELDS)
        assert every.users(batch).shape == (5, 1, 6)
        assert every.items(catalog(FIELDS)).shape == (60, 6)
    with pytest.raises(NotImplementedError, match="TwoInterests reads no sequences"):
        two.states(batch)


def test_columns_without_entries_have_the_type_of_their_field() -> None:
    full = ragged(3, fields=FIELDS).features
    empty = make_empty(FIELDS.features, full)
    assert set(empty) == set(full)
    for name, other in full.items():
        one = empty[name]
        assert type(one) is type(other)
        if isinstance(one, Jagged) and isinstance(other, Jagged):
            assert one.offsets.tolist() == [0]
            assert (one.weights is None) == (other.weights is None)
            one, other = one.values, other.values  # noqa: PLW2901
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert (one.dtype, one.shape) == (other.dtype, (0, *other.shape[1:]))
