from __future__ import annotations

import pytest
import torch

from longrec.errors import ConfigError
from longrec.features.fields import Fields
from longrec.models.core.registry import build
from longrec.models.pooling import Pooling
from longrec.testing.batches import FIELDS, ragged, take
from longrec.testing.case import Case


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_the_mlp_reads_the_impression_and_the_pooled_histories(how: str) -> None:
    model, batch = Case("pooling", {"pool": how}).lively(), ragged(9)
    assert isinstance(model, Pooling)
    embedded = model.embeddings(batch)
    for row in range(9):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, columns in embedded.histories.items():
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            for vectors in columns.values():
                events = vectors[start:stop]
                empty = torch.zeros(vectors.shape[1])
                pooled = {"mean": lambda v: v.mean(0), "sum": lambda v: v.sum(0), "max": lambda v: v.amax(0)}[how]
                inputs.append(pooled(events) if len(events) else empty)
        expected = model.top(torch.cat(inputs).unsqueeze(0)).squeeze()
        torch.testing.assert_close(model(take(batch, [row]))[0], expected, rtol=1e-4, atol=1e-4)


def test_a_schema_without_a_history_is_refused() -> None:
    with pytest.raises(ConfigError, match="pooling reads a history, and the schema has none"):
        build({"name": "pooling"}, Fields(FIELDS.features, {}))
